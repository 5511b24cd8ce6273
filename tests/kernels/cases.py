"""Random inputs of the head stage, shared by the kernel tests."""

import math

import torch
from hypothesis import strategies as st

from janus_dola.kernels import contrast, reference
from janus_dola.kernels.head import BACKENDS, head_triton
from janus_dola.kernels.params import log_of
from janus_dola.kernels.types import Head, SamplingParams, SamplingTensors, Scores


def dola(
    cfg_weight: float | None = 5.0,
    temperature: float = 1.0,
    alpha: float = 0.1,
    premature: int | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    beta: float | None = None,
) -> SamplingParams:
    """DoLa's params; `premature` is an index into the stack."""
    weights = (1.0, 1.0) if beta is None else (1.0 + beta, beta)
    numbers = {"log_alpha": log_of(alpha), "premature": -1 if premature is None else premature}
    numbers |= zip(("final_weight", "premature_weight"), weights, strict=True)
    return SamplingParams("dola", numbers, cfg_weight, temperature, top_k, top_p)


# Absolute tolerances against the float64 oracle on the same inputs (design: JSD 1e-4; p_hat 1e-2 in 16 bits, 1e-5 in fp32).
JSD_TOLERANCE = 1e-4
# float16 products of the head_triton kernels: the JSD of small random heads with sharp logits, where nothing averages out.
JSD_TOLERANCE_OF_SMALL_HEADS = 4e-3
# float32 alone, summed in the order of the kernels, is off by up to 1.1e-5 at the sizes of Janus-Pro-7B.
TOTAL_VARIATION_OF_LARGE_HEADS = 5e-5
TOTAL_VARIATION = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


# Triton's kernels run on a CPU under its interpreter only, which tests/conftest.py asks for where there is no GPU.
CPU_BACKENDS = tuple(b for b in BACKENDS if b != "triton" or (head_triton is not None and head_triton.INTERPRETED))


def random_head(
    hidden: int,
    width: int,
    codes: int,
    dtype: torch.dtype,
    seed: int,
    sharpness: float = 1.0,
    device: str = "cpu",
) -> Head:
    """A head whose logits have a standard deviation of about `sharpness`; other numbers on another device."""
    g = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=g, device=device) * scale).to(dtype)

    return Head(
        norm_weight=(torch.rand(hidden, generator=g, device=device) + 0.5).to(dtype),
        norm_eps=1e-6,
        proj_weight=normal(width, hidden, scale=hidden**-0.5),
        proj_bias=normal(width, scale=0.1),
        code_weight=normal(codes, width, scale=1.7 * sharpness * width**-0.5),
        code_bias=normal(codes, scale=0.1),
    )


def random_hidden(layers: int, images: int, hidden: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """[L, 2B, D]: layers and the two rows of an image resemble each other, as in a model."""
    g = torch.Generator().manual_seed(seed + 1)
    common = torch.randn(1, 1, hidden, generator=g)
    drift = 0.3 * torch.randn(layers, 1, hidden, generator=g).cumsum(0)
    return (3 * (common + drift + 0.5 * torch.randn(layers, 2 * images, hidden, generator=g))).to(dtype)


def random_matrix(hidden: int, codes: int, dtype: torch.dtype, seed: int, bias: bool, device: str = "cpu") -> Head:
    """The one-matrix head of a text model, with or without bias."""
    head = random_head(hidden, hidden, codes, dtype, seed, device=device)
    return Head(head.norm_weight, head.norm_eps, head.code_weight, head.code_bias if bias else None)


def to(head: Head, to: torch.dtype | str) -> Head:
    """The same weights in another dtype or on another device."""
    weights = {name: getattr(head, name) for name in Head.__dataclass_fields__ if name != "norm_eps"}
    moved = {name: weight if weight is None else weight.to(to) for name, weight in weights.items()}
    return Head(norm_eps=head.norm_eps, **moved)


def total_variation(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """1/2 sum |p - q| of two sets of scores, [...]."""
    return 0.5 * (log_p.double().softmax(-1) - log_q.double().softmax(-1)).abs().sum(-1)


def oracle(
    hidden_states: torch.Tensor, head: Head, params: SamplingParams
) -> tuple[Scores, torch.Tensor, torch.Tensor]:
    """The reference in float64: its scores, the JSD of every candidate [L-1, B], and log q_N [B, V]."""
    hidden_states, head = hidden_states.double(), to(head, torch.float64)
    normed = reference.rms_norm(hidden_states, head.norm_weight, head.norm_eps)
    logits = reference.guide(reference.apply_head(normed, head), params.cfg_weight)
    log_q = torch.log_softmax(logits, -1)
    each = SamplingTensors.repeat(params, logits.shape[1], hidden_states)
    return reference.decide(logits, each), contrast.jensen_shannon(log_q[-1], log_q[:-1]), log_q[-1]


def assert_accurate(
    result: Scores,
    hidden_states: torch.Tensor,
    head: Head,
    params: SamplingParams,
    jsd_tolerance: float = JSD_TOLERANCE,
) -> int:
    """Asserts the accuracy that the design promises against the float64 reference.

    Distributions are compared for images whose premature layer is the oracle's (it must be wherever the two best candidates
    differ by more than 1e-3) and in which no code is so near to the plausibility threshold that rounding may decide on it.

    Returns:
        the number of images whose distributions were compared.
    """
    expected, jsd, log_q_final = oracle(hidden_states, head, params)
    assert result.finite.all()
    same = result.layer == expected.layer
    if params.contrast["premature"] < 0 and len(jsd) > 1:
        best = jsd.topk(2, dim=0).values
        assert same[best[0] - best[1] > max(1e-3, 2 * jsd_tolerance)].all()
    else:
        assert same.all()
    assert ((result.jsd - expected.jsd).abs() <= jsd_tolerance)[same].all()
    if params.contrast["log_alpha"] > -math.inf:
        distance = log_q_final - log_q_final.amax(-1, keepdim=True) - params.contrast["log_alpha"]
        margin = 1e-2 if hidden_states.dtype in (torch.bfloat16, torch.float16) else 1e-3
        same &= (distance.abs() > margin).all(-1)
    difference = total_variation(result.scores, expected.scores)[same]
    large = hidden_states.dtype == torch.float32 and hidden_states.shape[-1] >= 2048
    most = TOTAL_VARIATION_OF_LARGE_HEADS if large else TOTAL_VARIATION[hidden_states.dtype]
    most *= (params.contrast["final_weight"] + params.contrast["premature_weight"]) / 2  # as errors of log q grow in F
    assert (difference <= most).all(), difference.max()
    return int(same.sum())


# Sizes that are not multiples of anything, and single-element ones.
shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 6),
        "images": st.integers(1, 5),
        "hidden": st.sampled_from([1, 7, 32, 65]),
        "width": st.sampled_from([1, 9, 48]),
        "codes": st.sampled_from([1, 2, 33, 257, 1000, 2500]),
    }
)
