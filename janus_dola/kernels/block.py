"""The front of the blocks: what is new of each row in, hidden states of the layers that are read out.

Three ways, each the same mathematics:

- on tensors (`block`): on any device, with any weights;
- on tensors, compiled by torch;
- our own kernels (`block_fused`): with the backend "triton", where a model's blocks are such as they serve.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from janus_dola.kernels.block_torch import BlockWeights, PassStart, Positions, block, run_blocks

try:
    from triton.errors import TritonError

    from janus_dola.kernels import block_triton
except ModuleNotFoundError as missing:  # Triton exists for Linux only
    if missing.name is None or missing.name.split(".")[0] != "triton":
        raise
    block_triton, TritonError = None, RuntimeError  # type: ignore[assignment]

Blocks = Callable[[Tensor, Sequence[BlockWeights], Tensor, PassStart, Sequence[int]], Tensor]
CANNOT_RUN = (RuntimeError, TypeError, TritonError)  # what compiling and launching a pass raise


def resolve_blocks(backend: str, blocks: Sequence[BlockWeights], window: int, compiled: bool = False) -> Blocks:
    """The way for these blocks: our own kernels for "triton" where they serve, and on tensors otherwise.

    Args:
        backend: as `head.resolve_backend` gave it.
        window: W, new positions of each row.
        compiled: blocks on tensors are wanted, by torch.compile.
    Returns:
        a function of x [R * W, D], the blocks, keys and values [N, R, capacity, 2, H_kv, d], where the new positions are,
        and layers in 1 .. N-1, ascending; it gives hidden states [len(layers) + 1, R * W, D], as `block.run_blocks`.
    """
    if compiled:
        return partial(_on_tensors, run=_compiled_block())
    if backend == "triton" and block_triton.why_not(blocks, window) is None:
        return block_triton.run_blocks
    return _on_tensors


def _on_tensors(
    x: Tensor,
    blocks: Sequence[BlockWeights],
    keys_values: Tensor,
    start: PassStart,
    layers: Sequence[int],
    run: Callable[[Tensor, BlockWeights, Tensor, Positions], Tensor] = block,
) -> Tensor:
    rows, capacity = keys_values.shape[1:3]
    together = blocks[0].heads_together
    place = Positions.of(start.start, len(x) // rows, start.rotary, capacity, start.visible, together)
    return run_blocks(x, blocks, keys_values, place, layers, run)


@cache
def _compiled_block() -> Callable[[Tensor, BlockWeights, Tensor, Positions], Tensor]:
    return torch.compile(block, fullgraph=True)
