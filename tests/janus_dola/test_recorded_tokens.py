"""A call draws the recorded codes, each of them; test_exact.py does so through the engine, in all orders and windows."""

import pytest
import torch

from tests.janus_dola.recorded import MULTINOMIAL, PROMPTS, SEED, SETTINGS, recorded, recorded_multinomial


@pytest.mark.parametrize(
    "name",
    [
        "baseline, T 1.0, cfg 5.0",
        "baseline, T 0.0, cfg 1.0",
        "alpha 0.1, T 1.0, cfg 5.0",
        "alpha 0.1, T 0.0, cfg 5.0",
        "static, T 0.5, cfg 1.0",
        "finite, T 1.0, cfg 5.0",
        "lens, T 1.0, cfg 1.0",
    ],
)
def test_tokens_are_those_recorded(mini, name):
    assert torch.equal(mini.generate(PROMPTS, seed=SEED, **SETTINGS[name]).tokens[:, 0], recorded()[name].tokens)


def test_tokens_of_the_multinomial_sampler_are_those_recorded(mini):
    assert torch.equal(mini.generate(PROMPTS[:3], seed=SEED, **MULTINOMIAL).tokens, recorded_multinomial())
