"""Reads the hidden states DoLa needs while the backbone runs: the last position (or last few) of each tapped layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from janus_dola.models.parts import JanusParts


def tap_buffer(parts: JanusParts, layers: Sequence[int], rows: int, positions: int | None = None) -> Tensor:
    """What `tapped` writes into: zeros in the model's dtype.

    Args:
        layers: as for `tapped`.
        rows: R, the batch rows of each call.
        positions: P, how many of the last positions are read; None is the last one.
    Returns:
        [len(layers) + 1, R, D], or [len(layers) + 1, R, P, D].
    """
    read = () if positions is None else (positions,)
    return torch.zeros(len(layers) + 1, rows, *read, parts.head.hidden_size, dtype=parts.dtype, device=parts.device)


@contextmanager
def tapped(parts: JanusParts, layers: Sequence[int], buffer: Tensor) -> Iterator[None]:
    """While open, every call of the backbone writes into the buffer.

    Args:
        layers: indices in 1 .. N-1; layer j is the output of block j.
        buffer: from `tap_buffer`: the tapped layers in the order given, then the final block's output, taken at the input
            of the final norm (Hugging Face's last hidden state has been through that norm already).
    """
    read_positions = -1 if buffer.ndim == 3 else slice(-buffer.shape[2], None)

    def read(slot: int, hidden_states: Tensor) -> None:
        buffer[slot].copy_(hidden_states[:, read_positions])

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
