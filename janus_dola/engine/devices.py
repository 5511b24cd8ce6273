"""What a device can do, and how the host talks to it without waiting."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Of torch's attention on a GPU. It would choose by shape, and its first choice has not been tried with masks like ours.
_ATTENTION = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def has_graphs(device: torch.device) -> bool:
    """Whether CUDA graphs can be captured on such a device."""
    return device.type == "cuda"


@cache
def stream_for(purpose: str, device: torch.device) -> torch.cuda.Stream:
    """One stream on a GPU for all work of a kind: what a stream has freed, only that stream can use again."""
    return torch.cuda.Stream(device)


def free_memory(device: torch.device) -> int:
    """Bytes to be had on a GPU: those that are free, and those that torch keeps unused for tensors, not for graphs."""
    free, _ = torch.cuda.mem_get_info(device)
    segments = torch.cuda.memory_snapshot()
    return free + sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in segments
        if segment["device"] == device.index and tuple(segment["segment_pool_id"]) == (0, 0)
    )


def upload(numbers: Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor on the device, [n], without waiting for what it has still to do."""
    on_host = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast of the caller's; on a GPU the model's own device, and one kind of attention by torch."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(sdpa_kernel(_ATTENTION))
        yield


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """What waits for the GPU raises a RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
