"""The triton backend of the blocks, on a GPU: six launches per block.

`block_torch` is their reference. A row's result has the same bits for the same number of rows, whichever the others are and
wherever it stands; for another number of rows the launch table may have other tiles.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from janus_dola.kernels.block_torch import Beside, BlockWeights, Matrix, PassStart
from janus_dola.kernels.gpu import block_matmul
from janus_dola.kernels.gpu.attention import attend

_MOST_HEAD_SIZE = 128  # numbers per head that one program of the attention kernel holds


def why_not(blocks: Sequence[BlockWeights]) -> str | None:
    """Says what keeps these blocks from our own products, in words that follow "needs"; None if nothing does.

    float16 is left to the library: x times the norm's weight, which our products read, can be too large for it.
    """
    dtype = blocks[0].attention_norm.weight.dtype
    if dtype == torch.float16:
        return "bfloat16 or float32, got float16"
    for weights in blocks:
        if weights.attention_norm_after or weights.mlp_norm_after:
            return "no norms behind attention and MLP, got some"
        if weights.rotated is not None:
            return f"heads rotated as a whole, got {weights.rotated} numbers of {weights.head_size}"
        if weights.head_size > _MOST_HEAD_SIZE:
            return f"heads of size up to {_MOST_HEAD_SIZE}, got {weights.head_size}"
        for name in ("qkv", "output", "gate_up", "down"):
            product = getattr(weights, name)
            matrices: tuple[Any, ...] = product.products if isinstance(product, Beside) else (product,)
            for matrix in matrices:
                if not (
                    isinstance(matrix, Matrix) and isinstance(matrix.weight, Tensor) and matrix.weight.is_contiguous()
                ):
                    return f"plain, contiguous weights, got a {type(matrix).__name__} for {name}"
                if matrix.weight.dtype != dtype:
                    return f"weights of one dtype, got {matrix.weight.dtype} for {name} beside norms of {dtype}"
            if len({matrix.bias is None for matrix in matrices}) > 1:
                return f"biases for all that are multiplied as one or for none, got some for {name}"
    return None


def run_blocks(
    x: Tensor, blocks: Sequence[BlockWeights], keys_values: Tensor, place: PassStart, layers: Sequence[int]
) -> Tensor:
    """Runs all blocks by our own kernels. See `block_torch.run_blocks` for shapes; `why_not` must be None."""
    states = []
    following = [*(weights.attention_norm.weight for weights in blocks[1:]), None]
    with torch.cuda.device_of(x):
        rows = block_matmul.weigh(x, blocks[0].attention_norm.weight)
        each = zip(blocks, keys_values.unbind(0), following, strict=True)
        for number, (weights, own, norm_after) in enumerate(each, 1):
            rows = _block(rows, weights, own, place, norm_after)
            if number in layers:
                states.append(rows.x)
    return torch.stack([*states, rows.x])


def _block(
    rows: block_matmul.Rows, weights: BlockWeights, keys_values: Tensor, place: PassStart, norm_after: Tensor | None
) -> block_matmul.Rows:
    qkv, gate_up = ([_plain(each) for each in beside.products] for beside in (weights.qkv, weights.gate_up))
    queries = block_matmul.projected(rows, weights.attention_norm.eps, qkv, keys_values, place)
    mixed = attend(queries, keys_values, place.start, place.visible, weights.scaling)
    rows = block_matmul.added(rows, mixed, _plain(weights.output), weights.mlp_norm.weight)
    gated = block_matmul.gated(rows, weights.mlp_norm.eps, gate_up)
    return block_matmul.added(rows, gated, _plain(weights.down), norm_after)


def _plain(product: object) -> tuple[Tensor, Tensor | None]:
    assert isinstance(product, Matrix)
    assert isinstance(product.weight, Tensor)  # `why_not` says so
    return product.weight, product.bias
