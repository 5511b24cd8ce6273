"""The triton backend of the blocks, on a GPU: six launches per block, and one more for each norm behind attention or MLP.

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
from janus_dola.kernels.gpu.block_rows import Rows, weigh

_MOST_HEAD_SIZE = 128  # numbers per head that one program of the attention kernel holds


def why_not(blocks: Sequence[BlockWeights]) -> str | None:
    """Says what keeps these blocks from our own products, in words that follow "needs"; None if nothing does.

    float16 is left to the library: x times the norm's weight, which our products read, can be too large for it.
    """
    dtype = blocks[0].attention_norm.weight.dtype
    if dtype == torch.float16:
        return "bfloat16 or float32, got float16"
    for weights in blocks:
        if weights.rotated is not None and weights.head_size % weights.rotated:
            return f"heads of a multiple of the numbers rotated, got {weights.rotated} of {weights.head_size}"
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
        rows = weigh(x, blocks[0].attention_norm.weight)
        each = zip(blocks, keys_values.unbind(0), following, strict=True)
        for number, (weights, own, norm_weight) in enumerate(each, 1):
            rows = _block(rows, weights, own, place, norm_weight)
            if number in layers:
                states.append(rows.x)
    return torch.stack([*states, rows.x])


def _block(
    rows: Rows, weights: BlockWeights, keys_values: Tensor, place: PassStart, norm_weight: Tensor | None
) -> Rows:
    qkv = [_plain(each) for each in weights.qkv.products]
    queries = block_matmul.projected(rows, weights.attention_norm.eps, qkv, keys_values, place)
    mixed = attend(queries, keys_values, place.start, place.visible, weights.scaling)
    behind = weights.attention_norm_after
    rows = block_matmul.added(rows, mixed, _plain(weights.output), weights.mlp_norm.weight, behind)
    gated = block_matmul.gated(rows, weights.mlp_norm.eps, _halves(weights.gate_up))
    return block_matmul.added(rows, gated, _plain(weights.down), norm_weight, weights.mlp_norm_after)


def _halves(gate_up: Beside) -> list[block_matmul.Weight]:
    """Returns the gate's weight and the other, which some models have in one."""
    matrices = [_plain(each) for each in gate_up.products]
    if len(matrices) > 1:
        return matrices
    ((weight, bias),) = matrices
    return list(zip(weight.chunk(2), (None, None) if bias is None else bias.chunk(2), strict=True))


def _plain(product: object) -> block_matmul.Weight:
    assert isinstance(product, Matrix)
    assert isinstance(product.weight, Tensor)  # `why_not` says so
    return product.weight, product.bias
