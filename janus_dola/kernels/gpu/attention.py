"""Attention over keys and values in a buffer of fixed size: rotates, writes the new keys and values, and takes a softmax.

    q, k = rotate(q), rotate(k)                  keys and values of the new positions go into the buffer
    z    = scaling q k                           over the positions up to the query's own
    out  = sum over chunks of sum exp(z - m) v, over sum over chunks of sum exp(z - m)

Keys are split among programs, in chunks of `CHUNK` positions counted from the row's first. Each leaves its maximum m, its
sum of exp(z - m) and its mixture of values; the second launch puts them together, always in the same order. Chunks behind a
row's last position are not looked at, so a row's bits depend on that row alone, and no mask is made.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.gpu.matmul import dot

CHUNK = 64  # positions per program
_LEAST_CHUNKS = 16  # what the second launch is compiled for: one kernel for all buffers up to 1024 positions


@triton.jit
def _rotated(
    vectors,  # [ROWS], pointers to the vectors that are rotated
    position,  # [ROWS]
    inside,  # [ROWS]
    cos_ptr, sin_ptr, positions, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Computes x cos + roll(x, d / 2) sin: [ROWS, BLOCK_SIZE] float32."""
    i = tl.arange(0, BLOCK_SIZE)[None, :]
    mask = inside[:, None] & (i < SIZE)
    x = tl.load(vectors[:, None] + i, mask=mask, other=0.0).to(tl.float32)
    rolled = tl.load(vectors[:, None] + (i + SIZE // 2) % SIZE, mask=mask, other=0.0).to(tl.float32)
    angle = tl.minimum(position, positions - 1)[:, None] * SIZE + i  # beyond lie guesses that nobody reads
    cos = tl.load(cos_ptr + angle, mask=mask, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=mask, other=0.0).to(tl.float32)
    return x * cos + rolled * sin


@triton.jit
def _attention_kernel(
    qkv_ptr,  # [R * W, H_q + 2 H_kv, d], not rotated
    cos_ptr,  # [POSITIONS, d]
    sin_ptr,  # [POSITIONS, d], the first half negated
    start_ptr,  # [R] int64
    buffer_ptr,  # [R, CAPACITY, 2, H_kv, d]
    mixed_ptr,  # [R * W, H_q, CHUNKS, d] fp32
    maximum_ptr,  # [R * W, H_q, CHUNKS] fp32
    total_ptr,  # [R * W, H_q, CHUNKS] fp32
    positions, capacity, scaling,
    WINDOW: tl.constexpr,  # W
    HEADS: tl.constexpr,  # H_kv
    GROUPS: tl.constexpr,  # query heads that share a head of keys
    SIZE: tl.constexpr,  # d
    BLOCK_QUERIES: tl.constexpr,  # >= W GROUPS
    BLOCK_SIZE: tl.constexpr,  # >= d
    CHUNK: tl.constexpr,
):  # fmt: skip
    row, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(start_ptr + row).to(tl.int32)
    if chunk * CHUNK >= start + WINDOW:
        return
    ALL: tl.constexpr = (GROUPS + 2) * HEADS
    i = tl.arange(0, BLOCK_SIZE)
    p = chunk * CHUNK + tl.arange(0, CHUNK)

    # keys and values [CHUNK, d]: older ones from the buffer, new ones into it
    keys_at = buffer_ptr + ((row.to(tl.int64) * capacity + p) * 2 * HEADS + head) * SIZE
    values_at = keys_at + HEADS * SIZE
    old = (p < start)[:, None] & (i < SIZE)[None, :]
    keys = tl.load(keys_at[:, None] + i[None, :], mask=old, other=0.0)
    values = tl.load(values_at[:, None] + i[None, :], mask=old, other=0.0)
    if (chunk + 1) * CHUNK > start:
        is_new = (p >= start) & (p < start + WINDOW) & (p < capacity)
        new = is_new[:, None] & (i < SIZE)[None, :]
        from_ptr = qkv_ptr + ((row * WINDOW + p - start).to(tl.int64) * ALL + GROUPS * HEADS + head) * SIZE
        rotated = _rotated(from_ptr, p, is_new, cos_ptr, sin_ptr, positions, SIZE, BLOCK_SIZE)
        keys = tl.where(new, rotated.to(keys.dtype), keys)
        values = tl.where(new, tl.load(from_ptr[:, None] + HEADS * SIZE + i[None, :], mask=new, other=0.0), values)
        tl.store(keys_at[:, None] + i[None, :], keys, mask=new)
        tl.store(values_at[:, None] + i[None, :], values, mask=new)

    # the queries of all new positions that share these keys
    query = tl.arange(0, BLOCK_QUERIES)
    at, group = query // GROUPS, query % GROUPS
    inside = query < WINDOW * GROUPS
    vector = (row * WINDOW + at) * ALL + head * GROUPS + group
    q = _rotated(
        qkv_ptr + vector.to(tl.int64) * SIZE, start + at, inside, cos_ptr, sin_ptr, positions, SIZE, BLOCK_SIZE
    )

    # softmax over this chunk's positions up to the query's own
    z = dot(q.to(keys.dtype), tl.trans(keys), tl.zeros([BLOCK_QUERIES, CHUNK], tl.float32)) * scaling
    z = tl.where(p[None, :] <= (start + at)[:, None], z, float("-inf"))
    maximum = tl.max(z, 1)
    e = tl.exp(z - tl.where(maximum == float("-inf"), 0.0, maximum)[:, None])
    mixed = dot(e.to(values.dtype), values, tl.zeros([BLOCK_QUERIES, BLOCK_SIZE], tl.float32))

    # a query that sees nothing of this chunk leaves nothing
    leaves = inside & (chunk * CHUNK <= start + at)
    part = ((row * WINDOW + at) * HEADS * GROUPS + head * GROUPS + group).to(tl.int64) * tl.num_programs(2) + chunk
    tl.store(maximum_ptr + part, maximum, mask=leaves)
    tl.store(total_ptr + part, tl.sum(e, 1), mask=leaves)
    tl.store(mixed_ptr + part[:, None] * SIZE + i[None, :], mixed, mask=leaves[:, None] & (i < SIZE)[None, :])


@triton.jit
def _combine_kernel(
    mixed_ptr,  # [R * W, H_q, CHUNKS, d] fp32
    maximum_ptr,  # [R * W, H_q, CHUNKS] fp32
    total_ptr,  # [R * W, H_q, CHUNKS] fp32
    start_ptr,  # [R] int64
    out_ptr,  # [R * W, H_q, d]
    chunks,
    WINDOW: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # >= d
    CHUNKS_PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0)
    vector = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    position = tl.load(start_ptr + row // WINDOW).to(tl.int32) + row % WINDOW
    c, i = tl.arange(0, CHUNKS_PADDED), tl.arange(0, BLOCK_SIZE)
    left = (c <= position // CHUNK) & (c < chunks)
    part = vector * chunks + c
    maximum = tl.load(maximum_ptr + part, mask=left, other=float("-inf"))
    total = tl.load(total_ptr + part, mask=left, other=0.0)
    mask = left[:, None] & (i < SIZE)[None, :]
    mixed = tl.load(mixed_ptr + part[:, None] * SIZE + i[None, :], mask=mask, other=0.0)
    share = tl.exp(maximum - tl.max(maximum, 0))
    out = tl.sum(share[:, None] * mixed, 0) / tl.sum(share * total, 0)
    tl.store(out_ptr + vector * SIZE + i, out.to(out_ptr.dtype.element_ty), mask=i < SIZE)


def attend(
    qkv: Tensor, keys_values: Tensor, start: Tensor, cos: Tensor, sin: Tensor, visible: int, scaling: float
) -> Tensor:
    """Attends from each row's W new positions to all up to themselves, [R * W, H_q d], and writes their keys and values.

    Args:
        qkv: [R * W, H_q + 2 H_kv, d]: queries, keys and values at the new positions, not rotated, contiguous.
        keys_values: [R, capacity, 2, H_kv, d], contiguous; only positions before `start` are read.
        start, cos, sin, visible: as in `block_torch.PassStart` and `Rotary`; `visible` is at most the capacity.
        scaling: factor for queries times keys.
    """
    rows, capacity, _, heads, size = keys_values.shape
    window, query_heads = len(qkv) // rows, qkv.shape[1] - 2 * heads
    groups, chunks = query_heads // heads, triton.cdiv(visible, CHUNK)
    block_size = max(16, triton.next_power_of_2(size))
    mixed = torch.empty(len(qkv), query_heads, chunks, size, dtype=torch.float32, device=qkv.device)
    maximum = torch.empty(len(qkv), query_heads, chunks, dtype=torch.float32, device=qkv.device)
    total = torch.empty_like(maximum)
    _attention_kernel[(rows, heads, chunks)](
        qkv, cos, sin, start, keys_values, mixed, maximum, total, len(cos), capacity, scaling,
        WINDOW=window, HEADS=heads, GROUPS=groups, SIZE=size,
        BLOCK_QUERIES=max(16, triton.next_power_of_2(window * groups)), BLOCK_SIZE=block_size, CHUNK=CHUNK, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    out = torch.empty(len(qkv), query_heads * size, dtype=qkv.dtype, device=qkv.device)
    _combine_kernel[(len(qkv), query_heads)](
        mixed, maximum, total, start, out, chunks, WINDOW=window, SIZE=size, BLOCK_SIZE=block_size,
        CHUNKS_PADDED=max(_LEAST_CHUNKS, triton.next_power_of_2(triton.cdiv(capacity, CHUNK))), CHUNK=CHUNK, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out
