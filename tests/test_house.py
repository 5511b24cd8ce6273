"""The code stays easy to read: limits on what `tests/house.py` counts."""

import pytest

from tests.house import ROOT, empty_names, measure


@pytest.fixture(scope="module")
def house():
    return measure()


def test_docstrings_of_functions_begin_with_a_verb(house):
    assert len(house.without_verb) <= 0.05 * house.docstrings, house.without_verb


def test_docstrings_are_english(house):
    assert house.of_share <= 0.025


@pytest.mark.parametrize("folder", ["janus_dola", "bench", "tests"])
def test_names_say_what_they_hold(folder):
    assert empty_names(ROOT / folder) == []


def test_a_name_stands_for_one_thing(house):
    assert house.twins == []


def test_modules_are_short(house):
    assert house.long_modules == []


def test_the_top_level_is_the_public_interface(house):
    assert len(house.top_level) <= 10, house.top_level


def test_imports_point_down_and_never_in_circles(house):
    """Kernels are the lowest room: they import nothing else of the package."""
    assert house.upward == []
    assert house.cycles == []
