"""Runs the blocks on each row's new positions, by one of three backends that compute the same.

- on tensors (`block_torch`): on any device, with any weights;
- on tensors, compiled by torch;
- our own kernels (`block_triton`): with the backend "triton", if they support a model's blocks.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from types import FunctionType

import torch
from torch import Tensor

from janus_dola.kernels.block_torch import BlockWeights, PassStart, Positions, block, run_blocks
from janus_dola.kernels.packed import Packed

try:
    from triton.errors import TritonError

    from janus_dola.kernels import block_triton
except ModuleNotFoundError as missing:  # Triton exists for Linux only
    if missing.name is None or missing.name.split(".")[0] != "triton":
        raise
    block_triton, TritonError = None, RuntimeError  # type: ignore[assignment]

Blocks = Callable[[Tensor, Sequence[BlockWeights], Tensor, PassStart, Sequence[int]], Tensor]
CANNOT_RUN = (RuntimeError, TypeError, TritonError)  # errors that compiling and launching a pass raise


def resolve_blocks(backend: str, blocks: Sequence[BlockWeights], window: int, compiled: bool = False) -> Blocks:
    """Chooses how to run these blocks: by our own kernels for "triton" if they support them, and on tensors otherwise.

    Args:
        backend: as `head.resolve_backend` gave it.
        window: W, new positions per row.
        compiled: run on tensors, compiled by torch.compile.
    Returns:
        a function like `block_torch.run_blocks` that takes a `PassStart` in place of `Positions`.
    Raises:
        RuntimeError: packed weights shall be compiled.
    """
    if compiled:
        first, weight = blocks[0], getattr(blocks[0].output, "weight", None)
        if isinstance(weight, Packed):
            raise RuntimeError("torch compiles no block whose weights lie packed for a CPU")
        sizes = first.attention_norm.weight.shape, first.query_heads, first.key_value_heads, first.head_size
        stored = first.attention_norm.weight.dtype, type(first.output), type(weight)
        return partial(_on_tensors, run=_compiled_block((window, sizes, stored)))
    if backend == "triton" and block_triton.why_not(blocks) is None:
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
    window, together = len(x) // rows, blocks[0].heads_together
    place = Positions.of(start.start, window, start.rotary, capacity, start.visible, together, start.prompt_tokens)
    return run_blocks(x, blocks, keys_values, place, layers, run)


@cache
def _compiled_block(kind: Hashable) -> Callable[[Tensor, BlockWeights, Tensor, Positions], Tensor]:
    """Returns the block, compiled by torch: a function for each kind of model, since torch compiles one 8 times only."""
    own = FunctionType(block.__code__.replace(), block.__globals__, block.__name__)
    return torch.compile(own, fullgraph=True)
