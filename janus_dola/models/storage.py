"""Decides where a model's weights lie and how they are stored: device, dtype, packed for a CPU, in 8 bits."""

import importlib.util
from typing import Any, get_args

import torch
from torch import nn

from janus_dola.arguments import DtypeName, Quantization
from janus_dola.kernels.packed import can_pack, has_amx, packing_of
from janus_dola.models.families import family_of
from janus_dola.models.model import ImageModel
from janus_dola.models.packed_linear import pack, unpack

QUANTIZATIONS = get_args(Quantization)


def default_device() -> torch.device:
    """Returns CUDA or Apple's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Returns float32 on a CPU; elsewhere bfloat16, but float16 on a GPU that has no bfloat16 (before Ampere)."""
    if device.type != "cuda":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def fastest_on_cpu() -> str:
    """Names the dtype in which this machine's CPU draws fastest with a large model (docs/speed.md).

    It is no default: in float32 codes do not depend on slots and window, and modules are ordinary ones.
    """
    return "bfloat16" if has_amx() else "float16" if can_pack() else "float32"


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Returns a floating dtype by its `DtypeName` or itself; anything else is a ValueError."""
    dtypes = torch.float32, torch.bfloat16, torch.float16, torch.float64
    names = dict(zip(get_args(DtypeName), 2 * dtypes, strict=True))
    parsed = names.get(dtype) if isinstance(dtype, str) else dtype
    if parsed is None or parsed not in names.values():
        raise ValueError(f"dtype must be one of {list(names)}, got {dtype!r}")
    return parsed


def parse_device(device: str | torch.device) -> torch.device:
    """Returns a device by name ("cpu", "cuda", "cuda:1", "mps") or itself; one that is not here is a ValueError."""
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
        if parsed.type == "meta":
            raise TypeError("it holds no weights")
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            names.append("mps")
        sees = ", ".join(names)
        if len(names) == 1:
            lacks = "finds no GPU" if torch.version.cuda or torch.version.hip else "is built without CUDA"
            sees = f"cpu alone, as it {lacks}"
        raise ValueError(
            f"device must be one that is here, got {str(device)!r}: torch {torch.__version__} sees {sees}"
        ) from error
    return parsed


def device_and_dtype(
    device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Returns the device and dtype that a model is loaded to; None is the default of this machine, and of the device."""
    chosen = default_device() if device is None else parse_device(device)
    return chosen, default_dtype(chosen) if dtype is None else parse_dtype(dtype)


def pack_for_cpu(model: Any) -> None:
    """Packs the blocks and what else its family packs, in place, if a model lies on a CPU that packs its dtype.

    With float16 the rest becomes float32. Weights are held once: as each is packed, the plain one goes. Elsewhere the model
    stays as it is, and its products are torch's own. A weight that is not finite in float16 is a ValueError.
    """
    packing = packing_of(model.dtype) if model.device.type == "cpu" else None
    if packing is None:
        return
    family = family_of(model)
    block: Any
    for block in family.adapt(model).blocks:
        pack(packing, block.self_attn, "q_proj", "k_proj", "v_proj")
        pack(packing, block.self_attn, "o_proj")
        pack(
            packing, block.mlp, *(name for name in ("gate_proj", "up_proj", "gate_up_proj") if hasattr(block.mlp, name))
        )
        pack(packing, block.mlp, "down_proj")
    for linear in family.packed:
        parent, _, name = linear.rpartition(".")
        if model.get_submodule(linear).weight is not model.get_input_embeddings().weight:  # tied
            pack(packing, model.get_submodule(parent), name)
    if packing.dtype != packing.stored_dtype:
        model.to(packing.dtype)


def check_name(how: str | None) -> None:
    """Raises ValueError where there is no such quantisation."""
    if how is not None and how not in QUANTIZATIONS:
        raise ValueError(f"quantize must be None or one of {list(QUANTIZATIONS)}, got {how!r}")


def check_quantization(how: str | None) -> None:
    """Raises ValueError where there is no such quantisation, and ImportError where torchao is not installed."""
    check_name(how)
    if how is not None and importlib.util.find_spec("torchao") is None:
        raise ImportError(f"quantize={how!r} needs torchao: pip install 'janus-dola[quantize]'")


def quantize_blocks(image_model: ImageModel, how: Quantization) -> None:
    """Stores the blocks' linear weights in 8 bits, in place; embeddings, final norm and image head stay as they are.

    There is one scale per output; "fp8" is e4m3. Products are still computed in the model's dtype. On a GPU it pays with
    launch="compile" only, which makes the conversion part of the product.
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(image_model.blocks, Int8WeightOnlyConfig() if how == "int8" else Float8WeightOnlyConfig())


def move_model(
    model: nn.Module, image_model: ImageModel, device: str | torch.device | None, dtype: str | torch.dtype | None
) -> None:
    """Moves a model, which `image_model` is taken from; None keeps its device or dtype. Packed weights are plain afterwards.

    Raises:
        ValueError: there is no such device or dtype, or weights in 8 bits shall have another dtype; nothing has moved then.
    """
    new_device = image_model.device if device is None else parse_device(device)
    new_dtype = image_model.stored_dtype if dtype is None else parse_dtype(dtype)
    if new_dtype != image_model.dtype and any(
        type(weight) is not nn.Parameter for weight in image_model.blocks.parameters()
    ):
        raise ValueError(f"dtype must be None or {image_model.dtype} for a model in 8 bits, got {dtype!r}")
    unpack(model)
    # What a model computes when it is made, such as the frequencies of the rotary embedding, stays as precise as it is.
    computed = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]
    model.to(device=new_device, dtype=new_dtype)
    for module, name, buffer in computed:
        setattr(module, name, buffer.to(new_device))
