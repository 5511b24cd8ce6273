"""Second launch of the fused stage, for heads with a projection: projection, GELU and guidance.

    g = GELU(W1 x + b1)                  every row of every layer
    y = g^u + w (g^c - g^u)              guidance, which the last Linear lets through unchanged (see `head_torch`)

A tile holds rows and a slice of W1, so that each weight is read once. There are too few slices to keep a GPU busy, so
several programs share one, each with a part of the inputs. They leave sums, and the program that arrives last at a tile
adds them up, always in the same order. An image's two rows lie side by side in a tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.gpu.launch import MatmulLaunch, launch_of
from janus_dola.kernels.gpu.matmul import ACTIVATION_SCALE, product
from janus_dola.kernels.types import Head


@triton.jit
def _project_kernel(
    x_ptr,  # [L, R, D], x / 16 in the dtype to multiply in; R as in `normalise`
    weight_ptr,  # [E, D]
    bias_ptr,  # [E]
    cfg_weight_ptr,  # [B] fp32, w; anything without guidance
    sums_ptr,  # [SPLITS, L * R, E] fp32, an image's rows side by side
    arrived_ptr,  # [COLUMN_TILES, OUTPUT_TILES] int32, 0, and again when all is done
    out_ptr,  # [L * B, E], y / 16 in the dtype to multiply in
    images,  # B
    pairs,  # L * B
    D, E,
    inputs_per_split,  # a multiple of BLOCK_D
    GUIDED: tl.constexpr, SPLITS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    PAIRS_AT_ONCE: tl.constexpr,  # that the last program at a tile activates in one go
):  # fmt: skip
    SIDES: tl.constexpr = 2 if GUIDED else 1
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    column = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pair, rows = column // SIDES, pairs * SIDES
    row = (pair // images * SIDES + column % SIDES) * images + pair % images
    first = tl.program_id(2) * inputs_per_split
    last = tl.minimum(first + inputs_per_split, D)
    total = product(weight_ptr, x_ptr, e, row, E, rows, D, first, last, BLOCK_E, BLOCK_ROWS, BLOCK_D)
    sums = sums_ptr + (tl.program_id(2) * rows + column).to(tl.int64)[None, :] * E + e[:, None]
    tl.store(sums, total, mask=(e < E)[:, None] & (column < rows)[None, :])

    tl.debug_barrier()  # all threads have stored before one of them says so
    arrived_ptr += tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        tl.store(arrived_ptr, 0)  # for the next launch
        _activate(
            bias_ptr, cfg_weight_ptr, sums_ptr, out_ptr, images, pairs, E, GUIDED, SIDES, SPLITS, BLOCK_E,
            BLOCK_ROWS // SIDES, PAIRS_AT_ONCE,
        )  # fmt: skip


@triton.jit
def _activate(
    bias_ptr, cfg_weight_ptr, sums_ptr, out_ptr, images, pairs, E, GUIDED: tl.constexpr, SIDES: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_PAIRS: tl.constexpr, PAIRS_AT_ONCE: tl.constexpr,
):  # fmt: skip
    # What the last program at a tile does: adds up the parts, in the order of the inputs, activates and guides.
    e = (tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E))[None, :]
    bias = tl.load(bias_ptr + e, mask=e < E, other=0.0).to(tl.float32)
    stride = (pairs * SIDES).to(tl.int64) * E
    first = tl.program_id(1) * BLOCK_PAIRS
    for start in range(first, tl.minimum(first + BLOCK_PAIRS, pairs), PAIRS_AT_ONCE):
        pair = (start + tl.arange(0, PAIRS_AT_ONCE))[:, None]
        mask = (pair < pairs) & (e < E)
        sums = sums_ptr + pair.to(tl.int64) * SIDES * E + e
        y = _gelu(_total(sums, stride, mask, SPLITS) / ACTIVATION_SCALE + bias)
        if GUIDED:
            u = _gelu(_total(sums + E, stride, mask, SPLITS) / ACTIVATION_SCALE + bias)
            y = u + tl.load(cfg_weight_ptr + pair % images) * (y - u)
        tl.store(out_ptr + pair.to(tl.int64) * E + e, (y * ACTIVATION_SCALE).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _total(sums, stride, mask, SPLITS: tl.constexpr):
    # Loads with .cg go past the first-level cache, which does not see what other programs store.
    total = tl.load(sums, mask=mask, other=0.0, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        total += tl.load(sums + split * stride, mask=mask, other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def _gelu(x):
    # The exact GELU: x times the normal distribution function.
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


def pairs_at_once(launch: MatmulLaunch) -> int:
    """Returns how many images the last program at a tile activates in one go: a thread loads up to 64 numbers for them."""
    most = max(1, 64 * 32 * launch.num_warps // (2 * launch.block_outputs * launch.splits))
    return min(triton.next_power_of_2(most + 1) // 2, launch.block_columns // 2)


def counters(x: Tensor, head: Head, launch: MatmulLaunch | None = None) -> int:
    """Returns the number of tiles in which `project` counts programs; arguments as there."""
    assert head.proj_weight is not None
    rows, width = x.shape[0] * x.shape[1], head.proj_weight.shape[0]
    launch = launch or launch_of("project", x, rows, width)
    return triton.cdiv(width, launch.block_outputs) * triton.cdiv(rows, launch.block_columns)


def project(
    x: Tensor,
    head: Head,
    cfg_weight: Tensor | None,
    arrived: Tensor | None = None,
    launch: MatmulLaunch | None = None,
) -> Tensor:
    """Projects, activates and guides: computes the input of the last Linear, [L, B, E], y / 16 in the dtype of x.

    Args:
        x: [L, R, D], as `normalise` returns it; R is 2B with guidance (conditional, then unconditional), else B.
        cfg_weight: [B] float32, w for each image; or None.
        arrived: [`counters`] int32, zeros, which it leaves as they are; None makes them.
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
    if arrived is None:
        arrived = torch.zeros(counters(x, head, launch), dtype=torch.int32, device=x.device)
    out = torch.empty(layers, images, width, dtype=x.dtype, device=x.device)
    _project_kernel[(triton.cdiv(width, launch.block_outputs), triton.cdiv(rows, launch.block_columns), splits)](
        x, head.proj_weight, head.proj_bias, out if cfg_weight is None else cfg_weight, sums, arrived, out, images,
        layers * images, hidden, width, blocks_per_split * launch.block_inputs, GUIDED=cfg_weight is not None,
        SPLITS=splits, BLOCK_E=launch.block_outputs, BLOCK_ROWS=launch.block_columns, BLOCK_D=launch.block_inputs,
        PAIRS_AT_ONCE=pairs_at_once(launch), num_warps=launch.num_warps, num_stages=launch.num_stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out
