"""The loops that we are compared with draw the same tokens, so that only time differs."""

import pytest
import torch

from bench.speed import peers
from janus_dola import DoLaConfig

PROMPT = "a small purple cross on grey"


@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_plain_loop_draws_what_we_draw(mini, dola, temperature):
    torch.manual_seed(3)
    expected = peers.seed_loop(mini, PROMPT, 3, dola=dola, temperature=temperature)
    torch.manual_seed(3)
    codes = mini.generate(PROMPT, 3, dola=dola, temperature=temperature, seed=None, sampler="multinomial").tokens
    assert torch.equal(codes[0], expected)


def test_the_plain_loop_cut_short_draws_the_same_to_there(mini):
    results = []
    for most in (None, 5):
        torch.manual_seed(3)
        results.append(peers.seed_loop(mini, PROMPT, 1, None, most=most))
    assert results[1].shape == (1, 5)
    assert torch.equal(results[0][:, :5], results[1])


def test_transformers_draws_what_we_draw(mini):
    torch.manual_seed(3)
    expected = peers.transformers_generate(mini, PROMPT, 3)
    torch.manual_seed(3)
    codes = mini.generate(PROMPT, 3, dola=None, seed=None, sampler="multinomial").tokens
    assert torch.equal(codes[0], expected)
