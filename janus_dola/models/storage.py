"""How the weights of a model are stored: the blocks in 8 bits, and all of it on another device or in another dtype."""

import importlib.util
from typing import get_args

import torch
from torch import nn

from janus_dola.arguments import Quantization
from janus_dola.models.model import ImageModel
from janus_dola.models.packed_linear import unpack
from janus_dola.models.placement import parse_device, parse_dtype

QUANTIZATIONS = get_args(Quantization)


def check_name(how: str | None) -> None:
    """Raises ValueError where there is no such quantisation."""
    if how is not None and how not in QUANTIZATIONS:
        raise ValueError(f"quantize must be None or one of {list(QUANTIZATIONS)}, got {how!r}")


def check_quantization(how: str | None) -> None:
    """Before a model is loaded for nothing.

    Raises:
        ValueError: there is no such quantisation.
        ImportError: torchao is not installed.
    """
    check_name(how)
    if how is not None and importlib.util.find_spec("torchao") is None:
        raise ImportError(f"quantize={how!r} needs torchao: pip install 'janus-dola[quantize]'")


def quantize_blocks(image_model: ImageModel, how: Quantization) -> None:
    """Stores the blocks' linear weights in 8 bits, in place; embeddings, final norm and image head stay as they are.

    Products are still made in the model's dtype. On a GPU it pays with launch="compile" only, which makes the
    conversion part of the product.

    Args:
        how: "int8" (one scale for each output) or "fp8" (e4m3, likewise).
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(image_model.blocks, Int8WeightOnlyConfig() if how == "int8" else Float8WeightOnlyConfig())


def move_model(
    model: nn.Module, image_model: ImageModel, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> None:
    """Moves a model; packed weights are plain afterwards.

    Args:
        image_model: of the model, as it is before.
        device, dtype: None keeps what it has.
    Raises:
        ValueError: there is no such device or dtype, or weights in 8 bits shall have another dtype; nothing has moved then.
    """
    where = image_model.device if device is None else parse_device(device)
    kind = image_model.stored_dtype if dtype is None else parse_dtype(dtype)
    if kind != image_model.dtype and any(
        type(weight) is not nn.Parameter for weight in image_model.blocks.parameters()
    ):
        raise ValueError(f"dtype must be None or {image_model.dtype} for a model in 8 bits, got {dtype!r}")
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
