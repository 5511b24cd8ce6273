"""Top-k and top-p: every backend against their definition, written out code by code in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_dola.kernels import reference
from janus_dola.kernels.head import head_scores, sample_codes
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.kernels.types import SamplingTensors
from tests.kernels.cases import CPU_BACKENDS, dola, random_head, random_hidden

BACKEND = pytest.mark.parametrize("backend", CPU_BACKENDS)
ALL = dola(alpha=0.01)


def shares(scores: torch.Tensor, temperature: float, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many codes are more probable than each, and what share of the `top_k` they hold: twice [V]."""
    above = scores.unsqueeze(0) > scores.unsqueeze(1)
    number = above.sum(1)
    by_k = number < top_k if top_k else torch.ones_like(number, dtype=torch.bool)
    probability = (scores / (temperature or 1)).masked_fill(~by_k, -torch.inf).softmax(-1)
    return number, (above * probability).sum(1)


def assert_truncated(result: torch.Tensor, scores: torch.Tensor, temperature: float, top_k: int, top_p: float) -> None:
    """Those of [V] scores stay, as they were, that the definition says; where rounding decides either is right."""
    number, share = shares(scores.double(), temperature, top_k)
    stays = (number < (top_k or len(scores))) & ((share < top_p) | (top_p == 1)) & (scores > -torch.inf)
    clear = (share - top_p).abs() > 1e-5
    assert torch.equal((result > -torch.inf)[clear], stays[clear])
    kept = result > -torch.inf
    assert torch.equal(result[kept], scores[kept])
    assert result.argmax() == scores.argmax()


@settings(max_examples=30)
@given(
    codes=st.integers(1, 300),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 310),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_reference_keeps_what_the_definition_says(codes, temperature, top_k, top_p, ties, seed):
    scores = 3 * torch.randn(2, codes, generator=torch.Generator().manual_seed(seed))
    if ties:
        scores = scores.round()
    scores[1, ::3] = -torch.inf if codes > 1 else 0
    scores[1, -1] = 1
    actual = reference.truncate(
        scores, torch.full((2,), temperature), torch.full((2,), top_k), torch.full((2,), top_p, dtype=torch.float32)
    )
    for image in range(2):
        assert_truncated(actual[image], scores[image], temperature, top_k, top_p)


OF_EACH = [
    ALL, replace(ALL, top_k=1), replace(ALL, top_k=7), replace(ALL, top_k=10**6), replace(ALL, top_p=0.3),
    replace(ALL, top_p=0.95, temperature=2.0), replace(ALL, top_k=20, top_p=0.8, temperature=0.5),
    replace(ALL, top_k=3, temperature=0.0), dola(alpha=0.0, premature=2, top_k=5),
]  # fmt: skip


@BACKEND
def test_every_backend_truncates_each_image_as_it_says(backend):
    """Layer and divergence stay what they are without; the code is drawn, by the same noise, from what is left.

    Its log-probability is that of what is left, too.
    """
    images = len(OF_EACH)
    head, hidden = random_head(16, 16, 2200, torch.float32, seed=3), random_hidden(3, images, 16, torch.float32, seed=3)
    together, seeds = SamplingTensors.of(OF_EACH, hidden), torch.arange(images) + 5
    actual, drawn = (
        head_scores(hidden, head, together, backend),
        sample_codes(hidden, head, together, seeds, 3, backend),
    )
    whole = head_scores(hidden, head, replace(together, top_k=None, top_p=None), backend)
    assert torch.equal(actual.layer, whole.layer)
    assert torch.equal(actual.jsd, whole.jsd)
    assert torch.equal(actual.scores[0], whole.scores[0])
    for image, params in enumerate(OF_EACH):
        assert_truncated(actual.scores[image], whole.scores[image], params.temperature, params.top_k, params.top_p)
        expected = (actual.scores[image].double() / (params.temperature or 1e-9)).log_softmax(-1)[drawn.code[image]]
        assert drawn.log_prob[image].item() == pytest.approx(expected.item(), abs=1e-5)
    assert [int((row > -torch.inf).sum()) for row in actual.scores[[1, 2, 8]]] == [1, 7, 5]
    assert torch.equal(drawn.code, gumbel_max(actual.scores, together.temperature, seeds, 3))
    assert drawn.code[[1, 7]].tolist() == whole.scores.argmax(-1)[[1, 7]].tolist()


@BACKEND
def test_the_most_probable_codes_stay_however_small_top_p_is(backend):
    """In float32 1e-50 is 0, and 1e-44 times what the codes hold may be."""
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(2, 2, 16, torch.float32, seed=3)
    head.code_weight[7], head.code_bias[7] = head.code_weight[9], head.code_bias[9]
    each = [dola(alpha=0.0, premature=1, top_p=top_p) for top_p in (1e-9, 1e-44, 1e-50)]
    expected, *others = (head_scores(hidden, head, params, backend).scores for params in each)
    whole = head_scores(hidden, head, dola(alpha=0.0, premature=1), backend).scores
    assert torch.equal(expected > -torch.inf, whole == whole.amax(-1, keepdim=True))
    assert all(torch.equal(other, expected) for other in others)
    drawn, least = (sample_codes(hidden, head, params, torch.arange(2), 3, backend).code for params in each[::2])
    assert torch.equal(drawn, least)


@BACKEND
def test_zeros_of_both_signs_are_one_number(backend):
    head, hidden = random_head(16, 16, 8, torch.float32, seed=3), random_hidden(1, 1, 16, torch.float32, seed=3)
    head = replace(head, code_weight=torch.zeros(8, 16), code_bias=torch.zeros(8))
    actual = head_scores(hidden, head, dola(top_k=3, top_p=0.2, premature=0), backend).scores
    assert (actual > -torch.inf).all()


def test_what_is_out_of_range():
    with pytest.raises(ValueError, match="top_k must be an int in 0 .. 2147483647 .*, got -1"):
        dola(top_k=-1)
    for top_p in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got"):
            dola(top_p=top_p)


def test_images_of_two_kinds_do_not_go_together():
    plain, cut = (SamplingTensors.of([each], torch.zeros(1)) for each in (ALL, replace(ALL, top_k=3)))
    with pytest.raises(ValueError, match="images must be of one kind: top_k is None for some"):
        plain.put(torch.tensor([0]), cut, 1)
