"""The comparison that tests on a GPU rely on, on a CPU."""

import pytest
import torch

from janus_dola.kernels.philox import gumbel_noise
from tests.janus_dola.ties import assert_same_but_for_ties

PROMPTS = ["a large red circle on white", "a green cross"]


def test_codes_that_tie_may_differ_and_others_may_not(mini, monkeypatch):
    drawn = mini.generate(PROMPTS, seed=4)
    scores = mini.scores(PROMPTS, drawn.tokens).scores[1, 0]
    assert_same_but_for_ties(mini, PROMPTS, drawn.tokens, drawn)
    t = int((torch.isfinite(scores).sum(-1) > 1).int().argmax())  # more than one code is plausible
    best, codes = (scores[t] + gumbel_noise(drawn.seeds[1, 0][None], t, scores.shape[-1])[0]).topk(2)
    assert codes[0] == drawn.tokens[1, 0, t]
    other = drawn.tokens.clone()
    other[1, 0, t] = codes[1]
    other[1, 0, t + 1 :] = 0  # another image from there on
    gap = float(best[0] - best[1])
    monkeypatch.setattr("tests.janus_dola.ties.TIE", 1.01 * gap)
    assert_same_but_for_ties(mini, PROMPTS, other, drawn)
    monkeypatch.setattr("tests.janus_dola.ties.TIE", 0.99 * gap)
    with pytest.raises(AssertionError):
        assert_same_but_for_ties(mini, PROMPTS, other, drawn)
