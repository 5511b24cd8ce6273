"""The products in a block, fused with what stands before and after each: norm, bias, gate, residual.

    qkv  = [W_q, W_k, W_v] norm(x)                     `normed`
    y    = x + W_o mixed                               `added`, which prepares the norm that follows
    out  = silu(g) * u,   g, u = [W_g, W_u] norm(y)    `normed`, gated
    x'   = y + W_d out                                 `added`

Every weight is read where it lies: a program of `normed` picks W_q, W_k or W_v by its number, and multiplies by W_g and W_u
side by side.

The norm costs no launch and nothing in the loop: a product of norm(x) = x / r * weight, r = sqrt(mean(x^2) + eps), is the
product of x * weight, divided by r when all is summed. Whatever writes x writes x * weight too, and sums of squares, one per
tile. (In float16 x * weight must stay below 65504, as x itself.)

Weights are the left operand, as in the codebook. A tile has all inputs, and always `COLUMNS` rows: how a row is summed does
not depend on how many other rows there are, which no library promises.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.gpu import launch
from janus_dola.kernels.gpu.matmul import product, two_products

COLUMNS = 32  # rows of activations in a tile


@dataclass(frozen=True)
class Rows:
    """Hidden states, ready to be normalised by the product that reads them."""

    x: Tensor  # [N, D]
    weighted: Tensor  # [N, D], x times the norm's weight
    squares: Tensor  # [TILES, N] fp32, sums of x^2 over the outputs of a tile; the tiles together cover D


@triton.jit
def _weigh_kernel(
    x_ptr,  # [N, D]
    norm_weight_ptr,  # [D]
    weighted_ptr,  # [N, D]
    squares_ptr,  # [1, N] fp32
    D,
    BLOCK_D: tl.constexpr,  # >= D
):
    row, d = tl.program_id(0), tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + row.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
    weight = tl.load(norm_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    weighted = (x * weight).to(weighted_ptr.dtype.element_ty)
    tl.store(weighted_ptr + row.to(tl.int64) * D + d, weighted, mask=d < D)
    tl.store(squares_ptr + row, tl.sum(x * x, 0))


@triton.jit
def _normed_kernel(
    x_ptr,  # [N, D], x times the norm's weight
    squares_ptr,  # [TILES, N] fp32
    first_ptr,  # [width, D]; the gate where gated
    second_ptr,  # [width_2, D]; what the gate is applied to, [width, D]
    third_ptr,  # [width_3, D]; not read where gated
    first_bias_ptr,  # as many, or anything without a bias
    second_bias_ptr,
    third_bias_ptr,
    out_ptr,  # [N, width + width_2 + width_3], the products side by side; [N, width] where gated
    rows,  # N
    tiles, D, width, width_2, width_3, eps, HAS_BIAS: tl.constexpr, GATED: tl.constexpr,
    TILES_PADDED: tl.constexpr,
    BLOCK_O: tl.constexpr,  # rows of weights
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    tile = tl.program_id(1)
    # 1 / sqrt(mean(x^2) + eps)
    part = tl.arange(0, TILES_PADDED)
    inside = (part < tiles)[:, None] & (row < rows)[None, :]
    squares = tl.load(squares_ptr + part[:, None] * rows + row[None, :], mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(squares, 0) / D + eps)[None, :]
    if GATED:
        OUTPUTS: tl.constexpr = BLOCK_O // 2
        o = tile * OUTPUTS + tl.arange(0, OUTPUTS)
        gate, up = two_products(first_ptr, second_ptr, x_ptr, o, row, width, rows, D, OUTPUTS, BLOCK_ROWS, BLOCK_D)
        gate, up = gate * scale, up * scale
        if HAS_BIAS:
            gate += tl.load(first_bias_ptr + o, mask=o < width, other=0.0).to(tl.float32)[:, None]
            up += tl.load(second_bias_ptr + o, mask=o < width, other=0.0).to(tl.float32)[:, None]
        total = gate / (1.0 + tl.exp(-gate)) * up
        outputs, before, across = width, 0, width
    else:
        # Each weight has tiles of its own.
        second_tile = tl.cdiv(width, BLOCK_O)
        third_tile = second_tile + tl.cdiv(width_2, BLOCK_O)
        in_first, in_third = tile < second_tile, tile >= third_tile
        weight_ptr = tl.where(in_first, first_ptr, tl.where(in_third, third_ptr, second_ptr))
        bias_ptr = tl.where(in_first, first_bias_ptr, tl.where(in_third, third_bias_ptr, second_bias_ptr))
        outputs = tl.where(in_first, width, tl.where(in_third, width_3, width_2))
        before = tl.where(in_first, 0, tl.where(in_third, width + width_2, width))
        tile -= tl.where(in_first, 0, tl.where(in_third, third_tile, second_tile))
        o = tile * BLOCK_O + tl.arange(0, BLOCK_O)
        across = width + width_2 + width_3
        total = product(weight_ptr, x_ptr, o, row, outputs, rows, D, 0, D, BLOCK_O, BLOCK_ROWS, BLOCK_D) * scale
        if HAS_BIAS:
            total += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[:, None]
    at = out_ptr + row.to(tl.int64)[None, :] * across + before + o[:, None]
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=(o < outputs)[:, None] & (row < rows)[None, :])


@triton.jit
def _added_kernel(
    x_ptr,  # [N, K]
    weight_ptr,  # [D, K]
    bias_ptr,  # [D], or anything without a bias
    residual_ptr,  # [N, D]
    norm_weight_ptr,  # [D], weight of the norm that follows, or anything without one
    out_ptr,  # [N, D]
    weighted_ptr,  # [N, D], the output times the norm's weight
    squares_ptr,  # [TILES, N] fp32
    rows,  # N
    K, D, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    y = product(weight_ptr, x_ptr, o, row, D, rows, K, 0, K, BLOCK_O, BLOCK_ROWS, BLOCK_D)
    if HAS_BIAS:
        y += tl.load(bias_ptr + o, mask=o < D, other=0.0).to(tl.float32)[:, None]
    at = row.to(tl.int64)[None, :] * D + o[:, None]
    mask = (o < D)[:, None] & (row < rows)[None, :]
    y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, y, mask=mask)
    if HAS_NORM:
        y = y.to(tl.float32)  # what is normalised is what was written
        weight = tl.load(norm_weight_ptr + o, mask=o < D, other=0.0).to(tl.float32)[:, None]
        tl.store(weighted_ptr + at, (y * weight).to(weighted_ptr.dtype.element_ty), mask=mask)
        y = tl.where(mask, y, 0.0)
        tl.store(squares_ptr + tl.program_id(1) * rows + row, tl.sum(y * y, 0), mask=row < rows)


def launch_options(outputs: int, bits: int, generation: str) -> dict[str, int]:
    """Returns the tile for a number of outputs: enough tiles for all multiprocessors, the same for any number of rows."""
    block_outputs = 64 if outputs >= 8192 else 32 if outputs > 2048 else 16
    block_inputs = (128 if block_outputs == 64 else 256) * 16 // bits
    if generation in ("gfx942", "sm_89"):
        block_inputs //= 2
    stages = 2 if generation == "gfx942" else 3
    blocks = {"BLOCK_O": block_outputs, "BLOCK_ROWS": COLUMNS, "BLOCK_D": block_inputs}
    return {**blocks, "num_warps": 4, "num_stages": stages}


def weigh(x: Tensor, norm_weight: Tensor) -> Rows:
    """Prepares rows [N, D] for the first block's norm."""
    rows, width = x.shape
    weighed = Rows(x, torch.empty_like(x), torch.empty(1, rows, dtype=torch.float32, device=x.device))
    _weigh_kernel[(rows,)](
        x, norm_weight, weighed.weighted, weighed.squares, width, BLOCK_D=triton.next_power_of_2(width), num_warps=8,
        enable_fp_fusion=True,
    )  # fmt: skip
    return weighed


def normed(rows: Rows, eps: float, matrices: Sequence[tuple[Tensor, Tensor | None]], gated: bool = False) -> Tensor:
    """Multiplies normalised rows by three matrices in one launch, or by two where `gated`.

    Args:
        rows: as `weigh` or `added` made them, with the norm's weight.
        matrices: a weight [O_i, D] and a bias [O_i] each, wherever they lie; contiguous, in the dtype of the rows. Either
            all have a bias or none. Where gated: the gate's, and that of what the gate is applied to, which is as large.
    Returns:
        the products side by side, [N, O_1 + O_2 + O_3]; or [N, O], silu of the first times the second. In the rows' dtype.
    """
    x, (tiles, count) = rows.weighted, rows.squares.shape
    weights, biases = zip(*matrices, strict=True)
    has_bias, widths = biases[0] is not None, [len(weight) for weight in weights]
    options = launch_options(sum(widths), x.element_size() * 8, launch.generation_here(x.device))
    block = options["BLOCK_O"]
    programs = triton.cdiv(sum(widths), block) if gated else sum(triton.cdiv(width, block) for width in widths)
    out = torch.empty(count, widths[0] if gated else sum(widths), dtype=x.dtype, device=x.device)
    unused = [x] * (3 - len(weights))
    _normed_kernel[(triton.cdiv(count, COLUMNS), programs)](
        x, rows.squares, *weights, *unused, *(biases if has_bias else weights), *unused, out, count, tiles,
        x.shape[1], *widths, *[0 for _ in unused], eps, HAS_BIAS=has_bias, GATED=gated,
        TILES_PADDED=triton.next_power_of_2(tiles), enable_fp_fusion=True, **options,
    )  # fmt: skip
    return out


def added(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, norm_weight: Tensor | None = None
) -> Rows:
    """Adds the product of x to the residual, ready for the norm that follows.

    Args:
        residual: [N, D].
        x, weight, bias: [N, K], [D, K] and [D] or None; contiguous, of the same dtype.
        norm_weight: [D]; None where none of our norms follows: then only `x` is filled in the result.
    """
    count, width = residual.shape
    options = launch_options(width, x.element_size() * 8, launch.generation_here(x.device))
    tiles = triton.cdiv(width, options["BLOCK_O"])
    out = torch.empty_like(residual)
    has_norm = norm_weight is not None
    weighted = torch.empty_like(residual) if has_norm else out
    squares = torch.empty(tiles, count, dtype=torch.float32, device=x.device)
    _added_kernel[(triton.cdiv(count, COLUMNS), tiles)](
        x, weight, x if bias is None else bias, residual, x if norm_weight is None else norm_weight, out, weighted, squares,
        count, x.shape[1], width, HAS_BIAS=bias is not None, HAS_NORM=has_norm, enable_fp_fusion=True, **options,
    )  # fmt: skip
    return Rows(out, weighted, squares)
