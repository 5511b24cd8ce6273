"""Rows of hidden states between the products of a block, ready for the norm that the next product applies.

    weighted = x * weight,   squares = sum x^2               `weigh`, before the first block
    y        = x + norm(out)                                 `add_normed`, and the same of y

A program has a whole row, and so the row's sum of squares. Without a norm behind attention or MLP the products add what they
multiply (`block_matmul`); with one, all outputs of a row are there before one of them is added.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.block_torch import Norm

_SMALLEST_TILE = 16  # outputs of a tile, at the least


@dataclass(frozen=True)
class Rows:
    """Hidden states, ready to be normalised by the product that reads them."""

    x: Tensor  # [N, D]
    weighted: Tensor  # [N, D], x times the norm's weight
    squares: Tensor  # [TILES, N] fp32, sums of x^2 over the outputs of a tile; the tiles together cover D
    arrived: Tensor  # [tiles or more] int32, 0: programs of `added` that have left their sums


@triton.jit
def _weigh_kernel(
    x_ptr,  # [N, D]
    norm_weight_ptr,  # [D]
    weighted_ptr,  # [N, D]
    squares_ptr,  # [1, N] fp32
    arrived_ptr,  # [N, COUNTERS] int32
    D,
    BLOCK_D: tl.constexpr,  # >= D
    COUNTERS: tl.constexpr,
):
    row, d = tl.program_id(0), tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + row.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
    weight = tl.load(norm_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    weighted = (x * weight).to(weighted_ptr.dtype.element_ty)
    tl.store(weighted_ptr + row.to(tl.int64) * D + d, weighted, mask=d < D)
    tl.store(squares_ptr + row, tl.sum(x * x, 0))
    tl.store(arrived_ptr + row * COUNTERS + tl.arange(0, COUNTERS), 0)


@triton.jit
def _add_normed_kernel(
    out_ptr,  # [N, D], what a product gave
    behind_weight_ptr,  # [D], weight of the norm it goes through
    residual_ptr,  # [N, D]
    norm_weight_ptr,  # [D], weight of the norm that follows, or None without one
    x_ptr,  # [N, D], the sum
    weighted_ptr,  # [N, D]; the sum times the norm's weight
    squares_ptr,  # [1, N] fp32
    D, eps,
    BLOCK_D: tl.constexpr,  # >= D
):  # fmt: skip
    row, d = tl.program_id(0), tl.arange(0, BLOCK_D)
    at, inside = row.to(tl.int64) * D + d, d < D
    out = tl.load(out_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(behind_weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = (residual + out * tl.rsqrt(tl.sum(out * out, 0) / D + eps) * weight).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + at, x, mask=inside)
    if norm_weight_ptr is not None:
        x = x.to(tl.float32)  # what is normalised is what was written
        weight = tl.load(norm_weight_ptr + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(weighted_ptr + at, (x * weight).to(weighted_ptr.dtype.element_ty), mask=inside)
        tl.store(squares_ptr + row, tl.sum(x * x, 0))


def weigh(x: Tensor, norm_weight: Tensor) -> Rows:
    """Prepares rows [N, D] for the first block's norm."""
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    squares = torch.empty(1, rows, dtype=torch.float32, device=x.device)
    arrived = torch.empty(rows, block // _SMALLEST_TILE, dtype=torch.int32, device=x.device)
    weighed = Rows(x, torch.empty_like(x), squares, arrived)
    _weigh_kernel[(rows,)](
        x, norm_weight, weighed.weighted, squares, arrived, width, BLOCK_D=block, COUNTERS=arrived.shape[1], num_warps=8,
        enable_fp_fusion=True,
    )  # fmt: skip
    return weighed


def add_normed(rows: Rows, out: Tensor, norm: Norm, norm_weight: Tensor | None) -> Rows:
    """Adds norm(out), of a product's outputs [N, D], to the rows [N, D], ready for the norm that follows.

    `norm_weight` is [D]; None where none of our norms follows: then only `x` is filled in the result.
    """
    count, width = out.shape
    squares = torch.empty(1, count, dtype=torch.float32, device=out.device)
    x, weighted = torch.empty_like(out), torch.empty_like(out) if norm_weight is not None else out
    _add_normed_kernel[(count,)](
        out, norm.weight, rows.x, norm_weight, x, weighted, squares, width, norm.eps,
        BLOCK_D=triton.next_power_of_2(width), num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return Rows(x, weighted, squares, rows.arrived)
