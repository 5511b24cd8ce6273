"""What a device can do, and how the host talks to it without waiting."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Torch's attention on a GPU. By itself torch chooses by shape, and its first choice has not been tried with masks like ours.
_ATTENTION = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def has_graphs(device: torch.device) -> bool:
    """Tells whether CUDA graphs can be captured on a device."""
    return device.type == "cuda"


@cache
def stream_for(purpose: str, device: torch.device) -> torch.cuda.Stream:
    """Returns the one stream on a GPU for all work of a kind: memory freed in a stream, only that stream can use again."""
    return torch.cuda.Stream(device)


def free_memory(device: torch.device) -> int:
    """Returns the bytes available on a GPU: free ones, and ones that torch keeps unused for tensors, not for graphs."""
    free, _ = torch.cuda.mem_get_info(device)
    segments = torch.cuda.memory_snapshot()
    return free + sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in segments
        if segment["device"] == device.index and tuple(segment["segment_pool_id"]) == (0, 0)
    )


def upload(numbers: Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copies numbers to the device, [n], without waiting for its work."""
    on_host = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Turns off gradients and the caller's autocast; on a GPU sets the model's device, and one kind of torch's attention."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(sdpa_kernel(_ATTENTION))
        yield


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """Raises RuntimeError where something waits for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
