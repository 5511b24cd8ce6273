import pytest

from tests.janus_dola.batch_helpers import FastPipe


@pytest.fixture(scope="session")
def fast(mini):
    """The mini model that draws surfaces of one colour."""
    return FastPipe(mini.model, mini.tokenizer)


@pytest.fixture
def drawn_prompts(fast, monkeypatch):
    """The prompts of each batch drawn."""
    calls = []
    draw = FastPipe.draw
    monkeypatch.setattr(
        FastPipe,
        "draw",
        lambda self, prompts, *rest, **more: calls.append(prompts) or draw(self, prompts, *rest, **more),
    )
    return calls
