"""Attention over keys and values in a buffer of fixed size, which hold the new positions already.

    z    = scaling q k                           over the positions up to the query's own
    out  = sum over chunks of sum exp(z - m) v, over sum over chunks of sum exp(z - m)

Keys are split among programs, in chunks of positions counted from the row's first. Each leaves its maximum m, its
sum of exp(z - m) and its mixture of values; the second launch puts them together, always in the same order. Chunks behind a
row's last position are not looked at, so a row's bits depend on that row alone, and no mask is made.

Query heads that share a head of keys, and a row's new positions, are rows of one product, in blocks of at most
`MOST_QUERIES`: more take another program, which reads the keys again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.gpu.matmul import dot

CHUNK = {2: 64, 4: 32}  # positions per program, by the bytes of a number
MOST_QUERIES = {2: 32, 4: 16}  # rows of queries per program: what fits into registers
_LEAST_CHUNKS = 16  # what the second launch is compiled for: one kernel for all buffers up to 1024 positions of 16 bits


@triton.jit
def _attention_kernel(
    queries_ptr,  # [R * W, H_q, d]
    start_ptr,  # [R] int64
    buffer_ptr,  # [R, CAPACITY, 2, H_kv, d]
    mixed_ptr,  # [R * W, H_q, CHUNKS, d] fp32
    maximum_ptr,  # [R * W, H_q, CHUNKS] fp32
    total_ptr,  # [R * W, H_q, CHUNKS] fp32
    capacity, scaling,
    WINDOW: tl.constexpr,  # W
    HEADS: tl.constexpr,  # H_kv
    GROUPS: tl.constexpr,  # query heads that share a head of keys
    SIZE: tl.constexpr,  # d
    BLOCK_QUERIES: tl.constexpr, QUERY_BLOCKS: tl.constexpr,  # together >= W GROUPS
    BLOCK_SIZE: tl.constexpr,  # >= d
    CHUNK: tl.constexpr,
):  # fmt: skip
    row, head, chunk = tl.program_id(0), tl.program_id(1) // QUERY_BLOCKS, tl.program_id(2)
    start = tl.load(start_ptr + row).to(tl.int32)
    if chunk * CHUNK >= start + WINDOW:
        return
    i = tl.arange(0, BLOCK_SIZE)
    p = chunk * CHUNK + tl.arange(0, CHUNK)
    keys_at = buffer_ptr + ((row.to(tl.int64) * capacity + p) * 2 * HEADS + head) * SIZE
    written = ((p < start + WINDOW) & (p < capacity))[:, None] & (i < SIZE)[None, :]
    keys = tl.load(keys_at[:, None] + i[None, :], mask=written, other=0.0)
    values = tl.load(keys_at[:, None] + HEADS * SIZE + i[None, :], mask=written, other=0.0)

    # queries of all new positions that share these keys
    query = tl.program_id(1) % QUERY_BLOCKS * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    at, group = query // GROUPS, query % GROUPS
    inside = query < WINDOW * GROUPS
    vector = ((row * WINDOW + at) * HEADS * GROUPS + head * GROUPS + group).to(tl.int64)
    mask = inside[:, None] & (i < SIZE)[None, :]
    q = tl.load(queries_ptr + vector[:, None] * SIZE + i[None, :], mask=mask, other=0.0)

    # softmax over this chunk's positions up to the query's own
    z = dot(q, tl.trans(keys), tl.zeros([BLOCK_QUERIES, CHUNK], tl.float32)) * scaling
    z = tl.where(p[None, :] <= (start + at)[:, None], z, float("-inf"))
    maximum = tl.max(z, 1)
    e = tl.exp(z - tl.where(maximum == float("-inf"), 0.0, maximum)[:, None])
    mixed = dot(e.to(values.dtype), values, tl.zeros([BLOCK_QUERIES, BLOCK_SIZE], tl.float32))

    # a query that sees nothing of this chunk leaves nothing
    leaves = inside & (chunk * CHUNK <= start + at)
    part = vector * tl.num_programs(2) + chunk
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


def attend(queries: Tensor, keys_values: Tensor, start: Tensor, visible: int, scaling: float) -> Tensor:
    """Attends from each row's W new positions to all up to themselves, [R * W, H_q d].

    Args:
        queries: [R * W, H_q d], rotated, contiguous.
        keys_values: [R, capacity, 2, H_kv, d], contiguous; positions before `start` + W are read.
        start, visible: as in `block_torch.PassStart`; `visible` is at most the capacity.
        scaling: factor for queries times keys.
    """
    rows, capacity, _, heads, size = keys_values.shape
    (count, width), chunk = queries.shape, CHUNK[queries.element_size()]
    window, query_heads, chunks = count // rows, width // size, triton.cdiv(visible, chunk)
    groups, block_size = query_heads // heads, max(16, triton.next_power_of_2(size))
    block_queries = min(max(16, triton.next_power_of_2(window * groups)), MOST_QUERIES[queries.element_size()])
    query_blocks = triton.cdiv(window * groups, block_queries)
    mixed = torch.empty(count, query_heads, chunks, size, dtype=torch.float32, device=queries.device)
    maximum = torch.empty(count, query_heads, chunks, dtype=torch.float32, device=queries.device)
    total = torch.empty_like(maximum)
    _attention_kernel[(rows, heads * query_blocks, chunks)](
        queries, start, keys_values, mixed, maximum, total, capacity, scaling, WINDOW=window, HEADS=heads, GROUPS=groups,
        SIZE=size, BLOCK_QUERIES=block_queries, QUERY_BLOCKS=query_blocks, BLOCK_SIZE=block_size, CHUNK=chunk, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    out = torch.empty_like(queries)
    _combine_kernel[(count, query_heads)](
        mixed, maximum, total, start, out, chunks, WINDOW=window, SIZE=size, BLOCK_SIZE=block_size,
        CHUNKS_PADDED=max(_LEAST_CHUNKS, triton.next_power_of_2(triton.cdiv(capacity, chunk))), CHUNK=chunk, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out
