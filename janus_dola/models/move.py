"""A model moved to another device or dtype, in place: as if it had been loaded there."""

import torch
from torch import nn

from janus_dola.models.load import parse_device, parse_dtype
from janus_dola.models.pack import unpack
from janus_dola.models.parts import JanusParts


def move_model(
    model: nn.Module, parts: JanusParts, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> None:
    """Moves a model; packed weights are plain afterwards.

    Args:
        parts: of the model, as it is before.
        device, dtype: None keeps what it has.
    Raises:
        ValueError: there is no such device or dtype, or weights in 8 bits shall have another dtype; nothing has moved then.
    """
    where = parts.device if device is None else parse_device(device)
    kind = parts.stored_dtype if dtype is None else parse_dtype(dtype)
    if kind != parts.dtype and any(type(weight) is not nn.Parameter for weight in parts.blocks.parameters()):
        raise ValueError(f"dtype must be None or {parts.dtype} for a model in 8 bits, got {dtype!r}")
    unpack(model)
    # What a model computes when it is made, such as the frequencies of the rotary embedding, stays as precise as it is.
    made = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]
    model.to(device=where, dtype=kind)
    for module, name, buffer in made:
        setattr(module, name, buffer.to(where))
