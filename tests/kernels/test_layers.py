"""The premature layer is float64's, by every backend, and no rounding turns it: only an exact tie leaves a choice."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_dola.kernels import contrast
from janus_dola.kernels.contrast import METHODS
from janus_dola.kernels.types import SamplingTensors
from tests.kernels.cases import CPU_BACKENDS, dola

LN2 = math.log(2)
TRITON = pytest.mark.skipif("triton" not in CPU_BACKENDS, reason="needs Triton and its interpreter")
SCALES = {"flat": 1e-2, "random": 1.0, "model": 5.0, "sharp": 30.0, "very sharp": 1e3, "one-hot": 1e4}


def of_float64(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns each candidate's JSD and ln 2 - JSD, [L-1, B] each, by other formulas than the kernels'.

    With m = (p + q) / 2 and d = log q - log p: a code adds p (log p - log m) + q (log q - log m) to twice the one, or for a
    small d two terms of its series, and p log(1 + q / p) + q log(1 + p / q) to twice the other.
    """
    log_q = logits.double().log_softmax(-1)
    p, q, d = log_q[-1], log_q[:-1], log_q[:-1] - log_q[-1]
    log_m = torch.logaddexp(p, q) - LN2
    terms = p.exp() * (p - log_m) + q.exp() * (q - log_m)
    half = d / 2
    jsd = torch.where(half.abs() < 1e-3, (p.exp() + q.exp()) * (half**2 / 2 - half**4 / 4), terms).sum(-1) / 2
    rest = p.exp() * torch.nn.functional.softplus(d, threshold=700) + q.exp() * torch.nn.functional.softplus(
        -d, threshold=700
    )
    return jsd, rest.sum(-1) / 2


def layers_of_float64(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float64's layers [B], and where they are no tie in it: to 1e-6 of JSD or ln 2 - JSD, or near 1e-300."""
    jsd, rest = of_float64(logits)
    beyond = rest.amin(0) < LN2 / 2
    layer = torch.where(beyond, rest.argmin(0), jsd.argmax(0))
    if len(jsd) == 1:
        return layer, torch.ones_like(beyond)
    (most, second), (least, next_) = jsd.topk(2, 0).values, rest.topk(2, 0, largest=False).values
    return layer, torch.where(beyond, next_ > 1.000001 * least + 1e-300, second < 0.999999 * most - 1e-300)


def layers(logits: torch.Tensor, backend: str) -> torch.Tensor:
    """Returns the layers [B] that DoLa chooses from guided logits [L, B, V] on a backend."""
    images = logits.shape[1]
    sampling = SamplingTensors.repeat(dola(alpha=0.0), images, logits)
    if backend != "triton":
        return METHODS["dola"](logits, **sampling.contrast).layer
    from janus_dola.kernels.gpu.sweep import sweep

    halves = logits.tensor_split([logits.shape[-1] // 2], -1) if logits.shape[-1] > 1 else (logits,)
    tile_max = torch.stack([half.amax(-1) for half in halves], -1)
    tile_sum = torch.stack([(half - half.amax(-1, keepdim=True)).exp().sum(-1) for half in halves], -1)
    nothing = torch.zeros(images, dtype=torch.int64)
    return sweep(logits, tile_max, tile_sum, sampling, nothing, nothing).layer


def logits_of(kind: str, layers: int, images: int, codes: int, groups: bool, seed: int) -> torch.Tensor:
    """Returns random logits [L, B, V] float32; with groups, each layer knows four values, so that codes are equal."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, images, codes, generator=g)
    if groups:
        logits = torch.randn(layers, images, 4, generator=g).gather(
            -1, (4 * torch.rand(logits.shape, generator=g)).long()
        )
    return SCALES[kind] * logits


BACKEND = pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=TRITON)])


@BACKEND
@pytest.mark.parametrize("kind", SCALES)
@settings(max_examples=6, derandomize=True)
@given(
    number=st.integers(2, 7),
    codes=st.sampled_from([1, 2, 3, 17, 64, 513]),
    groups=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_layers_are_those_of_float64_and_no_rounding_turns_them(backend, kind, number, codes, groups, seed):
    logits = logits_of(kind, number, 8 if backend == "torch" else 2, codes, groups, seed)
    expected, clear = layers_of_float64(logits)
    assert torch.equal(layers(logits, backend)[clear], expected[clear])
    for rounding in range(1, 21 if backend == "torch" else 1):
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(rounding))
        assert torch.equal(layers(logits * (1 + 1.2e-7 * noise), backend)[clear], expected[clear])


@BACKEND
@pytest.mark.parametrize("kind", ["flat", "sharp"])
def test_layers_of_16384_codes_are_those_of_float64(backend, kind):
    """More than are added up at once, and many programs of the sweep."""
    logits = logits_of(kind, 4, 1, 16384, groups=False, seed=3)
    expected, clear = layers_of_float64(logits)
    assert clear.all()
    assert torch.equal(layers(logits, backend), expected)


@BACKEND
def test_of_equal_layers_the_lowest_is_chosen_and_their_divergence_is_0(backend):
    logits = logits_of("model", 1, 3, 513, groups=False, seed=4).repeat(4, 1, 1)
    assert layers(logits, backend).tolist() == [0, 0, 0]
    log_q = logits.log_softmax(-1)
    assert contrast.jensen_shannon(log_q[-1], log_q[:-1]).tolist() == [[0.0] * 3] * 3
    logits[1] = logits[2] = logits_of("sharp", 1, 3, 513, groups=False, seed=5)
    assert layers(logits, backend).tolist() == [1, 1, 1]


def test_one_hot_log_probabilities_are_compared():
    """-inf is a log-probability, too: the layer that shares no code with the final one diverges most."""
    one_hot = torch.eye(3).log()
    half = torch.tensor([0.5, 0.5, 0.0]).log()
    early = torch.stack([one_hot[0], half, one_hot[1], one_hot[2]])
    assert contrast.select_premature(one_hot[0], early) == 2
    assert contrast.jensen_shannon(one_hot[0], early).tolist() == pytest.approx([0, 0.2157616, LN2, LN2], abs=1e-7)
    assert contrast.select_premature(one_hot[0], early[:2]) == 1


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 10.0, 30.0])
def test_divergences_keep_their_digits_near_0_and_near_ln_2(size):
    logits = size * torch.randn(2, 50, 300, generator=torch.Generator().manual_seed(1))
    log_q = logits.log_softmax(-1)
    (log_scale, c), (jsd, rest) = contrast.complement(log_q[-1], log_q[:-1]), of_float64(logits)
    assert torch.allclose(0.5 * log_scale.double().exp() * c, rest, rtol=3e-6, atol=0)
    actual = contrast.jensen_shannon(log_q[-1], log_q[:-1])
    assert torch.allclose(actual.double(), jsd, rtol=5e-7 + 1e-7 / size, atol=0)
