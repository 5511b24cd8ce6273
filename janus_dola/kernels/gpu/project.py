"""Second and third launch of the fused stage, for heads with a projection: projection, then GELU and guidance.

    g = GELU(W1 x + b1)                  every row of every layer
    y = g^u + w (g^c - g^u)              guidance, which the last Linear lets through unchanged (see `head_torch`)

A tile holds all rows and a slice of W1, so that each weight is read once. There are too few slices to keep a GPU busy, so
several programs share one, each with a part of the inputs. They leave sums, which the third launch adds up, always in the
same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.gpu.launch import MatmulLaunch, launch_of
from janus_dola.kernels.gpu.matmul import ACTIVATION_SCALE, product
from janus_dola.kernels.gpu.normalise import row_offsets
from janus_dola.kernels.types import Head

_BLOCK_E = 512  # outputs per program in the third launch


@triton.jit
def _project_kernel(
    x_ptr,  # [L * R, D], x / 16 in the dtype to multiply in
    weight_ptr,  # [E, D]
    sums_ptr,  # [SPLITS, L * R, E] fp32
    rows,  # L * R
    D, E,
    inputs_per_split,  # a multiple of BLOCK_D
    BLOCK_E: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    split = tl.program_id(2)
    first = split * inputs_per_split
    last = tl.minimum(first + inputs_per_split, D)
    total = product(weight_ptr, x_ptr, e, row, E, rows, D, first, last, BLOCK_E, BLOCK_ROWS, BLOCK_D)
    sums = sums_ptr + (split * rows + row).to(tl.int64)[None, :] * E + e[:, None]
    tl.store(sums, total, mask=(e < E)[:, None] & (row < rows)[None, :])


@triton.jit
def _activate_kernel(
    sums_ptr,  # [SPLITS, L * R, E] fp32
    bias_ptr,  # [E]
    out_ptr,  # [L, B, E], y / 16 in the dtype to multiply in
    cfg_weight_ptr,  # [B] fp32, w; anything without guidance
    images,  # B
    E,
    splits,
    stride,  # L * R * E
    GUIDED: tl.constexpr,
    SPLITS_PADDED: tl.constexpr,  # to a power of two
    BLOCK_E: tl.constexpr,
):
    pair = tl.program_id(0)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    conditional, to_unconditional = row_offsets(pair, images, E, GUIDED)
    bias = tl.load(bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)
    sums = sums_ptr + conditional + e
    y = _gelu(_total(sums, splits, stride, e < E, SPLITS_PADDED) / ACTIVATION_SCALE + bias)
    if GUIDED:
        u = _gelu(_total(sums + to_unconditional, splits, stride, e < E, SPLITS_PADDED) / ACTIVATION_SCALE + bias)
        y = u + tl.load(cfg_weight_ptr + pair % images) * (y - u)
    tl.store(out_ptr + pair.to(tl.int64) * E + e, (y * ACTIVATION_SCALE).to(out_ptr.dtype.element_ty), mask=e < E)


@triton.jit
def _total(sums, splits, stride, inside, SPLITS_PADDED: tl.constexpr):
    # All parts are loaded before the first is added.
    split = tl.arange(0, SPLITS_PADDED)[:, None]
    parts = tl.load(sums[None, :] + split.to(tl.int64) * stride, mask=inside[None, :] & (split < splits), other=0.0)
    return tl.sum(parts, 0)


@triton.jit
def _gelu(x):
    # The exact GELU: x times the normal distribution function.
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


def project(x: Tensor, head: Head, cfg_weight: Tensor | None, launch: MatmulLaunch | None = None) -> Tensor:
    """Projects, activates and guides: computes the input of the last Linear, [L, B, E], y / 16 in the dtype of x.

    Args:
        x: [L, R, D], as `normalise` returns it; R is 2B with guidance (conditional, then unconditional), else B.
        cfg_weight: [B] float32, w for each image; or None.
        launch: block shapes; None reads them from the launch table.
    """
    layers, rows_per_layer, hidden = x.shape
    assert head.proj_weight is not None
    width, rows = head.proj_weight.shape[0], layers * rows_per_layer
    images = rows_per_layer if cfg_weight is None else rows_per_layer // 2
    launch = launch or launch_of("project", x, rows, width)
    blocks = triton.cdiv(hidden, launch.block_inputs)
    blocks_per_split = triton.cdiv(blocks, launch.splits)
    splits = triton.cdiv(blocks, blocks_per_split)
    sums = torch.empty(splits, rows, width, dtype=torch.float32, device=x.device)
    _project_kernel[(triton.cdiv(width, launch.block_outputs), triton.cdiv(rows, launch.block_columns), splits)](
        x, head.proj_weight, sums, rows, hidden, width, blocks_per_split * launch.block_inputs,
        BLOCK_E=launch.block_outputs, BLOCK_ROWS=launch.block_columns, BLOCK_D=launch.block_inputs,
        num_warps=launch.num_warps, num_stages=launch.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    out = torch.empty(layers, images, width, dtype=x.dtype, device=x.device)
    _activate_kernel[(layers * images, triton.cdiv(width, _BLOCK_E))](
        sums, head.proj_bias, out, out if cfg_weight is None else cfg_weight, images, width, splits, rows * width,
        GUIDED=cfg_weight is not None, SPLITS_PADDED=triton.next_power_of_2(splits), BLOCK_E=_BLOCK_E, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out
