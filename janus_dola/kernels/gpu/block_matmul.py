"""The products in a block, fused with what stands before and after each: norm, bias, rotation, gate, residual.

    q, k, v = [W_q, W_k, W_v] norm(x)                        `projected`: rotates q and k, puts k and v into the buffer
    y       = x + W_o mixed                                  `added`, which prepares the norm that follows
    out     = silu(g) * u,   g, u = [W_g, W_u] norm(y)       `gated`
    x'      = y + W_d out                                    `added`

Every weight is read where it lies. `gated` multiplies by W_g and W_u at once, and `projected` by two parts of one weight,
for the numbers i and i + d' / 2 in a head, which the rotation mixes; d' is d, or less where only the first d' numbers of a
head are rotated: then the others go in pairs of the same distance. A program picks W_q, W_k or W_v by its number.

The norm costs no launch and nothing in the loop: a product of norm(x) = x / r * weight, r = sqrt(mean(x^2) + eps), is the
product of x * weight, divided by r when all is summed. Whatever writes x writes x * weight too, and sums of squares, one per
tile. (In float16 x * weight must stay below 65504, as x itself.)

Weights are the left operand, as in the codebook. How large tiles are depends on the number of rows of activations (the
launch table): a weight is read from memory once, and from the cache once per 128 rows. How a row is summed depends on that
number alone, not on the other rows, nor on where a row stands: no library promises that.

`added` has fewer outputs than it takes to keep a GPU busy. So several programs share a tile, each with a part of the inputs.
They leave sums, and the one that arrives last adds them up, always in the same order. No program has a whole row: what goes
through a norm of its own before it is added takes a second launch (`block_rows`).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.block_torch import Norm, PassStart
from janus_dola.kernels.gpu.block_rows import Rows, add_normed
from janus_dola.kernels.gpu.launch import MatmulLaunch, launch_of
from janus_dola.kernels.gpu.matmul import product, two_products

Weight = tuple[Tensor, Tensor | None]  # [O, K] and a bias [O], contiguous and of the rows' dtype


@triton.jit
def _squares(squares_ptr, tiles, row, rows, TILES_PADDED: tl.constexpr):
    # Sums of squares [TILES_PADDED, BLOCK_ROWS]. Loaded before a product and added up after it, they keep nobody waiting.
    tile = tl.arange(0, TILES_PADDED)
    inside = (tile < tiles)[:, None] & (row < rows)[None, :]
    return tl.load(squares_ptr + tile[:, None] * rows + row[None, :], mask=inside, other=0.0)


@triton.jit
def _finished(total, squares, D, eps, bias_ptr, output, outputs, HAS_BIAS: tl.constexpr):
    # A product of x * weight becomes the product of norm(x), bias added.
    total *= tl.rsqrt(tl.sum(squares, 0) / D + eps)[None, :]
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
    return total


@triton.jit(do_not_specialize=["rows", "window", "tiles", "image"])  # another number needs no kernel of its own
def _projected_kernel(
    x_ptr,  # [N, D], x times the norm's weight; N = R W
    squares_ptr,  # [TILES, N] fp32
    q_weight_ptr,  # [H_q d, D]
    k_weight_ptr,  # [H_kv d, D]
    v_weight_ptr,  # [H_kv d, D]
    q_bias_ptr,  # [H_q d], or anything without a bias; the same for the next two
    k_bias_ptr,
    v_bias_ptr,
    cos_ptr,  # [POSITIONS, d'], the second half as the first
    sin_ptr,  # [POSITIONS, d'], the first half negated
    start_ptr,  # [R] int64
    prompt_tokens_ptr,  # [R] int64; None where the tables begin where each row begins
    queries_ptr,  # [N, H_q, d]
    buffer_ptr,  # [R, CAPACITY, 2, H_kv, d]
    rows,  # N
    window,  # W
    tiles, D, positions,
    image,  # the tables' row for an image's first code, or None
    capacity, eps,
    HEADS: tl.constexpr,  # H_kv
    GROUPS: tl.constexpr,  # query heads that share a head of keys
    SIZE: tl.constexpr,  # d
    ROTATED: tl.constexpr,  # d', of which d is a multiple
    HAS_BIAS: tl.constexpr, TILES_PADDED: tl.constexpr,
    BLOCK_O: tl.constexpr,  # rows of weights
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = ROTATED // 2
    PAIRS: tl.constexpr = BLOCK_O // 2
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    squares = _squares(squares_ptr, tiles, row, rows, TILES_PADDED)

    # each weight has tiles of its own
    key_tile = tl.cdiv(GROUPS * HEADS * (SIZE // 2), PAIRS)
    value_tile = key_tile + tl.cdiv(HEADS * (SIZE // 2), PAIRS)
    tile = tl.program_id(1)
    is_query, is_value = tile < key_tile, tile >= value_tile
    weight_ptr = tl.where(is_query, q_weight_ptr, tl.where(is_value, v_weight_ptr, k_weight_ptr))
    bias_ptr = tl.where(is_query, q_bias_ptr, tl.where(is_value, v_bias_ptr, k_bias_ptr))
    outputs = tl.where(is_query, GROUPS * HEADS * SIZE, HEADS * SIZE)
    pair = (tile - tl.where(is_query, 0, tl.where(is_value, value_tile, key_tile))) * PAIRS + tl.arange(0, PAIRS)

    # numbers i < d' / 2 of d' in a row, and i + d' / 2
    i = pair % HALF
    o = pair // HALF * ROTATED + i
    low, high = two_products(
        weight_ptr, weight_ptr + HALF * D, x_ptr, o, row, outputs, rows, D, PAIRS, BLOCK_ROWS, BLOCK_D
    )
    low = _finished(low, squares, D, eps, bias_ptr, o, outputs, HAS_BIAS)
    high = _finished(high, squares, D, eps, bias_ptr, o + HALF, outputs, HAS_BIAS)

    # x cos + roll(x, d' / 2) sin; values are not rotated
    position = tl.load(start_ptr + row // window, mask=row < rows, other=0).to(tl.int32) + row % window
    known = position
    if prompt_tokens_ptr is not None:  # counted from the image's first code
        known += image - tl.load(prompt_tokens_ptr + row // window, mask=row < rows, other=0).to(tl.int32)
    angle = tl.minimum(known, positions - 1)[None, :] * ROTATED + i[:, None]  # beyond lie guesses that nobody reads
    straight = is_value
    if ROTATED < SIZE:
        straight = is_value | (o % SIZE >= ROTATED)[:, None]
    cos = tl.where(straight, 1.0, tl.load(cos_ptr + angle).to(tl.float32))
    sin = tl.where(straight, 0.0, tl.load(sin_ptr + angle + HALF).to(tl.float32))
    low, high = low * cos - high * sin, high * cos + low * sin

    low, high = low.to(queries_ptr.dtype.element_ty), high.to(queries_ptr.dtype.element_ty)
    inside = (o < outputs)[:, None] & (row < rows)[None, :]
    if tile < key_tile:
        at = queries_ptr + row.to(tl.int64)[None, :] * (GROUPS * HEADS * SIZE) + o[:, None]
        tl.store(at, low, mask=inside)
        tl.store(at + HALF, high, mask=inside)
    else:
        place = ((row // window).to(tl.int64) * capacity + position) * 2 + tl.where(is_value, 1, 0)
        at = buffer_ptr + place[None, :] * (HEADS * SIZE) + o[:, None]
        inside = inside & (position < capacity)[None, :]
        tl.store(at, low, mask=inside)
        tl.store(at + HALF, high, mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles"])  # another number needs no kernel of its own
def _gated_kernel(
    x_ptr,  # [N, D], x times the norm's weight
    squares_ptr,  # [TILES, N] fp32
    gate_weight_ptr,  # [I, D]
    up_weight_ptr,  # [I, D]
    gate_bias_ptr,  # [I], or anything without a bias
    up_bias_ptr,  # the same
    out_ptr,  # [N, I]
    rows,  # N
    tiles, D, width, eps,
    HAS_BIAS: tl.constexpr, TILES_PADDED: tl.constexpr,
    BLOCK_O: tl.constexpr,  # rows of weights
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    OUTPUTS: tl.constexpr = BLOCK_O // 2
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    squares = _squares(squares_ptr, tiles, row, rows, TILES_PADDED)
    gate, up = two_products(gate_weight_ptr, up_weight_ptr, x_ptr, o, row, width, rows, D, OUTPUTS, BLOCK_ROWS, BLOCK_D)
    gate = _finished(gate, squares, D, eps, gate_bias_ptr, o, width, HAS_BIAS)
    up = _finished(up, squares, D, eps, up_bias_ptr, o, width, HAS_BIAS)
    out = gate / (1.0 + tl.exp(-gate)) * up
    at = out_ptr + row.to(tl.int64)[None, :] * width + o[:, None]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=(o < width)[:, None] & (row < rows)[None, :])


@triton.jit(do_not_specialize=["rows"])  # another number needs no kernel of its own
def _added_kernel(
    x_ptr,  # [N, K]
    weight_ptr,  # [D, K]
    bias_ptr,  # [D], or anything without a bias
    residual_ptr,  # [N, D]; None where the product is not added here
    norm_weight_ptr,  # [D], weight of the norm that follows, or anything without one
    out_ptr,  # [N, D]
    weighted_ptr,  # [N, D], the output times the norm's weight
    squares_ptr,  # [TILES, N] fp32
    sums_ptr,  # [programs, BLOCK_O, BLOCK_ROWS] fp32
    arrived_ptr,  # [tiles or more] int32, 0, and 0 again in the end
    rows,  # N
    K, D,
    inputs_per_split,  # a multiple of BLOCK_D
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row_tile, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    first = split * inputs_per_split
    last = tl.minimum(first + inputs_per_split, K)
    y = product(weight_ptr, x_ptr, o, row, D, rows, K, first, last, BLOCK_O, BLOCK_ROWS, BLOCK_D)
    if SPLITS > 1:
        number = row_tile * tl.num_programs(1) + tile
        inside = tl.arange(0, BLOCK_O)[:, None] * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[None, :]
        sums = sums_ptr + number.to(tl.int64) * (SPLITS * BLOCK_O * BLOCK_ROWS) + inside
        tl.store(sums + split * (BLOCK_O * BLOCK_ROWS), y)
        tl.debug_barrier()  # all threads have stored before one of them says so
        if tl.atomic_add(arrived_ptr + number, 1, sem="acq_rel", scope="gpu") < SPLITS - 1:
            return
        tl.store(arrived_ptr + number, 0)
        y = tl.load(sums, cache_modifier=".cg")
        for other in tl.static_range(1, SPLITS):
            y += tl.load(sums + other * (BLOCK_O * BLOCK_ROWS), cache_modifier=".cg")

    if HAS_BIAS:
        y += tl.load(bias_ptr + o, mask=o < D, other=0.0).to(tl.float32)[:, None]
    at = row.to(tl.int64)[None, :] * D + o[:, None]
    mask = (o < D)[:, None] & (row < rows)[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, y, mask=mask)
    if HAS_NORM:
        y = y.to(tl.float32)  # what is normalised is what was written
        weight = tl.load(norm_weight_ptr + o, mask=o < D, other=0.0).to(tl.float32)[:, None]
        tl.store(weighted_ptr + at, (y * weight).to(weighted_ptr.dtype.element_ty), mask=mask)
        y = tl.where(mask, y, 0.0)
        tl.store(squares_ptr + tile * rows + row, tl.sum(y * y, 0), mask=row < rows)


def projected(
    rows: Rows, eps: float, matrices: Sequence[Weight], keys_values: Tensor, place: PassStart,
    launch: MatmulLaunch | None = None,
) -> Tensor:  # fmt: skip
    """Computes queries, keys and values of normalised rows in one launch, and rotates queries and keys.

    Args:
        rows: as `weigh` or `added` made them, with the norm's weight; W per row of the buffer.
        matrices: of queries, keys and values; either all have a bias or none.
        keys_values: [R, CAPACITY, 2, H_kv, d], contiguous; keys and values are written at the rows' new positions, but for
            positions from CAPACITY on.
        place: where these are. Where its tables are narrower than a head, they rotate the first numbers of each.
        launch: tiles; None reads them from the launch table.
    Returns:
        queries, [N, H_q d].
    """
    x, (tiles, count) = rows.weighted, rows.squares.shape
    (number, capacity, _, heads, size), rotary = keys_values.shape, place.rotary
    assert rotary.image is None or place.prompt_tokens is not None
    weights, biases = zip(*matrices, strict=True)
    width = len(weights[0])
    launch = launch or launch_of("qkv", x, count, width + 2 * heads * size)
    programs = sum(triton.cdiv(len(weight), launch.block_outputs) for weight in weights)
    queries = torch.empty(count, width, dtype=x.dtype, device=x.device)
    _projected_kernel[(triton.cdiv(count, launch.block_columns), programs)](
        x, rows.squares, *weights, *(weights if biases[0] is None else biases), rotary.cos, rotary.sin, place.start,
        None if rotary.image is None else place.prompt_tokens, queries, keys_values, count, count // number, tiles,
        x.shape[1], len(rotary.cos), rotary.image, capacity, eps, HEADS=heads, GROUPS=width // (heads * size), SIZE=size,
        ROTATED=rotary.cos.shape[1], HAS_BIAS=biases[0] is not None, TILES_PADDED=_padded(tiles, x.shape[1]),
        **_options(launch),
    )  # fmt: skip
    return queries


def gated(rows: Rows, eps: float, matrices: Sequence[Weight], launch: MatmulLaunch | None = None) -> Tensor:
    """Multiplies normalised rows by a gate's weight and by a second: silu of the first product times the second, [N, I].

    Args:
        rows: as `weigh` or `added` made them, with the norm's weight.
        matrices: of the gate, and of what the gate is applied to, as large; either both have a bias or none.
        launch: tiles; None reads them from the launch table.
    """
    x, (tiles, count) = rows.weighted, rows.squares.shape
    weights, biases = zip(*matrices, strict=True)
    width = len(weights[0])
    launch = launch or launch_of("gate_up", x, count, 2 * width)
    out = torch.empty(count, width, dtype=x.dtype, device=x.device)
    _gated_kernel[(triton.cdiv(count, launch.block_columns), triton.cdiv(2 * width, launch.block_outputs))](
        x, rows.squares, *weights, *(weights if biases[0] is None else biases), out, count, tiles, x.shape[1], width, eps,
        HAS_BIAS=biases[0] is not None, TILES_PADDED=_padded(tiles, x.shape[1]), **_options(launch),
    )  # fmt: skip
    return out


def added(
    rows: Rows, x: Tensor, matrix: Weight, norm_weight: Tensor | None = None, behind: Norm | None = None,
    launch: MatmulLaunch | None = None,
) -> Rows:  # fmt: skip
    """Adds the product of x [N, K] to the rows [N, D], ready for the norm that follows.

    Args:
        rows: as `weigh` or `added` made them.
        x, matrix: inputs, and a weight [D, K] with its bias or None.
        norm_weight: [D]; None where none of our norms follows: then only `x` is filled in the result.
        behind: a norm that the product goes through before it is added, in a second launch.
        launch: tiles; None reads them from the launch table.
    """
    (count, width), inputs, (weight, bias) = rows.x.shape, x.shape[1], matrix
    launch = launch or launch_of("added", x, count, width)
    row_tiles, tiles = triton.cdiv(count, launch.block_columns), triton.cdiv(width, launch.block_outputs)
    turns = triton.cdiv(triton.cdiv(inputs, launch.block_inputs), launch.splits)
    splits = triton.cdiv(inputs, turns * launch.block_inputs)
    sums_of_all = row_tiles * tiles * splits * launch.block_outputs * launch.block_columns if splits > 1 else 0
    out, has_norm = torch.empty_like(rows.x), norm_weight is not None and behind is None
    weighted = torch.empty_like(out) if has_norm else out
    squares = torch.empty(tiles, count, dtype=torch.float32, device=x.device)
    sums = torch.empty(sums_of_all, dtype=torch.float32, device=x.device)
    _added_kernel[(row_tiles, tiles, splits)](
        x, weight, x if bias is None else bias, rows.x if behind is None else None, norm_weight if has_norm else x, out,
        weighted, squares, sums, rows.arrived, count, inputs, width, turns * launch.block_inputs, HAS_BIAS=bias is not None,
        HAS_NORM=has_norm, SPLITS=splits, **_options(launch),
    )  # fmt: skip
    if behind is not None:
        return add_normed(rows, out, behind, norm_weight)
    return Rows(out, weighted, squares, rows.arrived)


def _padded(tiles: int, width: int) -> int:
    """Pads a number of tiles: usually to the same number behind `weigh` and behind `added`, so to one kernel."""
    return triton.next_power_of_2(max(tiles, triton.cdiv(width, 64)))


def _options(launch: MatmulLaunch) -> dict[str, int]:
    blocks = {"BLOCK_O": launch.block_outputs, "BLOCK_ROWS": launch.block_columns, "BLOCK_D": launch.block_inputs}
    return {**blocks, "num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
