"""Reads the hidden states DoLa needs while the backbone runs: the last position of each tapped layer, nothing else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from janus_dola.models.parts import JanusParts


def tap_buffer(parts: JanusParts, layers: Sequence[int], rows: int) -> Tensor:
    """What `tapped` writes into: [len(layers) + 1, R, D] zeros in the model's dtype."""
    return torch.zeros(len(layers) + 1, rows, parts.head.hidden_size, dtype=parts.dtype, device=parts.device)


@contextmanager
def tapped(parts: JanusParts, layers: Sequence[int], buffer: Tensor) -> Iterator[None]:
    """While open, every call of the backbone writes into the buffer.

    Args:
        layers: indices in 1 .. N-1; layer j is the output of block j.
        buffer: from `tap_buffer`, for the batch rows of each call: the tapped layers in the order given, then the final
            block's output, taken at the input of the final norm (Hugging Face's last hidden state has been through that
            norm already).
    """

    def read(slot: int, hidden_states: Tensor) -> None:
        buffer[slot].copy_(hidden_states[:, -1])

    def block_hook(slot: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            read(slot, output[0] if isinstance(output, tuple) else output)

        return hook

    def norm_hook(module: nn.Module, args: tuple) -> None:
        read(len(layers), args[0])

    handles = [parts.blocks[layer - 1].register_forward_hook(block_hook(slot)) for slot, layer in enumerate(layers)]
    handles.append(parts.final_norm.register_forward_pre_hook(norm_hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
