"""First launch of the fused stage: final norm, projection and guidance, for all layers and rows at once.

    g = GELU(W1 LN_out(h) + b1)          with a projection (Janus' image head)
    g = LN_out(h)                        without one (a single Linear, as text models have)
    x = g^u + w (g^c - g^u)              guidance, which the last Linear lets through unchanged (see `batched`)

A projection tile holds all rows and a slice of W1, so that each weight is read once. Weights are the left operand: they
fill the 64 rows that the matrix instructions of Hopper want, and the few rows of activations are padded to 16 only. LN_out
needs the mean square of a whole row, which is known only at the end of the loop; being one number a row, it comes in there.

Heads of 16 bits are multiplied in float16. bfloat16 weights lose nothing by that (below 6e-5 they are rounded to 6e-8),
while activations rounded to bfloat16 would miss the accuracy asked for, since guidance multiplies their error by w.
Activations are held at a sixteenth, a power of two and so without loss: float16 then has room for numbers up to a million.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.launch import MatmulLaunch, launch_of
from janus_dola.kernels.types import Head

SHRINK = tl.constexpr(1 / 16)


@triton.jit
def _row_offsets(pair, images, width, GUIDED: tl.constexpr):
    # Where the conditional row of a (layer, image) pair lies, and how far behind it the unconditional one.
    rows_a_layer = images * 2 if GUIDED else images
    row = (pair // images) * rows_a_layer + pair % images
    return row.to(tl.int64) * width, images * width


@triton.jit
def _project_kernel(
    hidden_ptr,  # [L, R, D], R = 2B with guidance (conditional rows, then unconditional), else B
    norm_weight_ptr,  # [D]
    weight_ptr,  # [E, D]
    bias_ptr,  # [E]
    out_ptr,  # [L, B, E], x / 16 in the dtype to multiply in
    arrived_ptr,  # [B] int32, set to 0 for the sweep
    pairs,  # L * B
    images,
    D,
    E,
    eps,
    cfg_weight,
    GUIDED: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    OPERAND: tl.constexpr = out_ptr.dtype.element_ty
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    pair = tl.program_id(1) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    inside_e, inside_pair = e < E, pair < pairs
    row, to_unconditional = _row_offsets(pair, images, D, GUIDED)
    weight_rows = weight_ptr + e.to(tl.int64)[:, None] * D
    hidden_rows = hidden_ptr + row[None, :]

    # sum_d W1[e, d] h[d] weight[d] / 16 and sum_d h[d]^2, of the conditional and of the unconditional rows
    sum_c = tl.zeros([BLOCK_E, BLOCK_PAIRS], tl.float32)
    sum_u = tl.zeros([BLOCK_E, BLOCK_PAIRS], tl.float32)
    square_c = tl.zeros([BLOCK_PAIRS], tl.float32)
    square_u = tl.zeros([BLOCK_PAIRS], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (d < D)[:, None] & inside_pair[None, :]
        w = tl.load(weight_rows + d[None, :], mask=inside_e[:, None] & (d < D)[None, :], other=0.0).to(OPERAND)
        scale = tl.load(norm_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)[:, None] * SHRINK
        h = tl.load(hidden_rows + d[:, None], mask=inside, other=0.0).to(tl.float32)
        square_c += tl.sum(h * h, 0)
        sum_c = tl.dot(w, (h * scale).to(OPERAND), sum_c, input_precision="ieee")
        if GUIDED:
            h = tl.load(hidden_rows + to_unconditional + d[:, None], mask=inside, other=0.0).to(tl.float32)
            square_u += tl.sum(h * h, 0)
            sum_u = tl.dot(w, (h * scale).to(OPERAND), sum_u, input_precision="ieee")

    bias = tl.load(bias_ptr + e, mask=inside_e, other=0.0).to(tl.float32)[:, None]
    x = _gelu(sum_c * (tl.rsqrt(square_c / D + eps) / SHRINK)[None, :] + bias)
    if GUIDED:
        u = _gelu(sum_u * (tl.rsqrt(square_u / D + eps) / SHRINK)[None, :] + bias)
        x = u + cfg_weight * (x - u)
    out = out_ptr + pair[None, :] * E + e[:, None]
    tl.store(out, (x * SHRINK).to(OPERAND), mask=inside_e[:, None] & inside_pair[None, :])
    if tl.program_id(0) == 0:
        tl.store(arrived_ptr + pair, 0, mask=pair < images)


@triton.jit
def _normalise_kernel(
    hidden_ptr,  # [L, R, D]
    norm_weight_ptr,  # [D]
    out_ptr,  # [L, B, D], x / 16 in the dtype to multiply in
    arrived_ptr,  # [B] int32, set to 0 for the sweep
    images,
    D,
    eps,
    cfg_weight,
    GUIDED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    pair = tl.program_id(0)
    row, to_unconditional = _row_offsets(pair, images, D, GUIDED)
    conditional = hidden_ptr + row
    unconditional = conditional + to_unconditional

    square_c = tl.zeros([BLOCK_D], tl.float32)
    square_u = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        h = tl.load(conditional + d, mask=d < D, other=0.0).to(tl.float32)
        square_c += h * h
        if GUIDED:
            h = tl.load(unconditional + d, mask=d < D, other=0.0).to(tl.float32)
            square_u += h * h
    scale_c = tl.rsqrt(tl.sum(square_c, 0) / D + eps)
    scale_u = tl.rsqrt(tl.sum(square_u, 0) / D + eps)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        weight = tl.load(norm_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        x = tl.load(conditional + d, mask=d < D, other=0.0).to(tl.float32) * scale_c * weight
        if GUIDED:
            u = tl.load(unconditional + d, mask=d < D, other=0.0).to(tl.float32) * scale_u * weight
            x = u + cfg_weight * (x - u)
        tl.store(out_ptr + pair.to(tl.int64) * D + d, (x * SHRINK).to(out_ptr.dtype.element_ty), mask=d < D)
    if pair < images:
        tl.store(arrived_ptr + pair, 0)


@triton.jit
def _gelu(x):
    # The exact one: x times the normal distribution function.
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


def multiplied_dtype(weights: torch.dtype) -> torch.dtype:
    """The dtype in which weights and activations are multiplied: float16 for both of 16 bits."""
    return torch.float32 if weights == torch.float32 else torch.float16


def project(
    hidden_states: Tensor, head: Head, cfg_weight: float | None, arrived: Tensor, launch: MatmulLaunch | None = None
) -> Tensor:
    """What goes into the last Linear: normalised, projected and guided.

    Args:
        hidden_states: [L, R, D] float32, float16 or bfloat16; R is 2B with guidance (conditional, then unconditional),
            else B.
        head: weights of the same dtype and device.
        cfg_weight: w, or None.
        arrived: [B] int32, set to zero here for `sweep`.
        launch: block shapes; None takes those of the launch table.
    Returns:
        [L, B, E], x / 16 in `multiplied_dtype` of the weights (E is D without a projection).
    """
    layers, images, hidden = hidden_states.shape[0], len(arrived), head.hidden_size
    width, pairs = head.code_weight.shape[1], layers * images
    guided = cfg_weight is not None
    weight = cfg_weight if cfg_weight is not None else 1.0
    x = torch.empty(layers, images, width, dtype=multiplied_dtype(hidden_states.dtype), device=hidden_states.device)
    if head.proj_weight is None:
        _normalise_kernel[(pairs,)](
            hidden_states, head.norm_weight, x, arrived, images, hidden, head.norm_eps, weight,
            GUIDED=guided, BLOCK_D=min(2048, triton.next_power_of_2(hidden)), num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
        return x
    launch = launch or launch_of("project", hidden_states, pairs, width)
    grid = (triton.cdiv(width, launch.block_outputs), triton.cdiv(pairs, launch.block_pairs))
    _project_kernel[grid](
        hidden_states, head.norm_weight, head.proj_weight, head.proj_bias, x, arrived, pairs, images, hidden, width,
        head.norm_eps, weight, GUIDED=guided, BLOCK_E=launch.block_outputs, BLOCK_PAIRS=launch.block_pairs,
        BLOCK_D=launch.block_inputs, num_warps=launch.num_warps, num_stages=launch.num_stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    return x
