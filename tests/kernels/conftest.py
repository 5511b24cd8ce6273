import pytest


@pytest.fixture(autouse=True, scope="session")
def interpreted_faster(remembered_builtins):
    """For all tests here."""
