"""What a device can do, and how the host talks to it without waiting."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor


def has_graphs(device: torch.device) -> bool:
    """Whether CUDA graphs can be captured on such a device."""
    return device.type == "cuda"


def upload(numbers: Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor on the device, [n], without waiting for what it has still to do."""
    on_host = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast of the caller's, and kernels launched on the model's own device."""
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with torch.no_grad(), torch.autocast(device.type, enabled=False), on_device:
        yield
