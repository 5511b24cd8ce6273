"""Where a model lies, and in which dtype: names turned into devices and dtypes that this machine has."""

from typing import get_args

import torch

from janus_dola.arguments import DtypeName


def default_device() -> torch.device:
    """CUDA or Apple's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU; elsewhere bfloat16, but float16 on a GPU that has no bfloat16 (before Ampere)."""
    if device.type != "cuda":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating dtype by name ("float32", "bfloat16", "float16"; also "fp32", "bf16", "fp16") or itself.

    Raises:
        ValueError: it is none of those.
    """
    names = dict(zip(get_args(DtypeName), 2 * (torch.float32, torch.bfloat16, torch.float16), strict=True))
    found = names.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in names.values():
        raise ValueError(f"dtype must be one of {list(names)}, got {dtype!r}")
    return found


def parse_device(device: str | torch.device) -> torch.device:
    """A device by name ("cpu", "cuda", "cuda:1", "mps") or itself.

    Raises:
        ValueError: this torch has no such device.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"device must be one that is here, got {str(device)!r}: {_devices_here()}") from error
    return found


def _devices_here() -> str:
    """What this torch sees, in words."""
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    if len(names) > 1:
        return f"torch {torch.__version__} sees {', '.join(names)}"
    lacks = "finds no GPU" if torch.version.cuda or torch.version.hip else "is built without CUDA"
    return f"torch {torch.__version__} sees cpu alone, as it {lacks}"


def device_and_dtype(
    device: str | torch.device | None, dtype: str | torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """What a model is loaded to: None is a GPU where there is one, and the dtype of `default_dtype`.

    Raises:
        ValueError: the dtype is unknown, or the device is not there.
    """
    found = parse_device(device) if device is not None else default_device()
    return found, parse_dtype(dtype) if dtype is not None else default_dtype(found)
