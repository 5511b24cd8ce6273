"""What a device can do, and how the host talks to it without waiting."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Held from the pass that loads kernels to the end of its capture: torch captures one graph at a time in a process.
capturing = threading.Lock()
_streams: dict[tuple[str, torch.device], torch.cuda.Stream] = {}
_unended: list[torch.cuda.CUDAGraph] = []  # captures that could not be ended: torch's allocators still ask these graphs


def has_graphs(device: torch.device) -> bool:
    """Tells whether CUDA graphs can be captured on a device."""
    return device.type == "cuda"


def stream_for(purpose: str, device: torch.device) -> torch.cuda.Stream:
    """Returns the one stream on a GPU for all work of a kind: memory freed in a stream, only that stream can use again."""
    key = purpose, device
    if key not in _streams:
        stream = torch.cuda.Stream(device)
        while stream in _streams.values():  # torch hands out 32 streams in turn
            stream = torch.cuda.Stream(device)
        _streams.setdefault(key, stream)
    return _streams[key]


def free_memory(device: torch.device) -> int:
    """Returns the bytes available on a GPU: free ones, and ones that torch keeps unused for tensors, not for graphs."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == device.index and tuple(segment["segment_pool_id"]) == (0, 0)
    )


def give_back_memory(device: torch.device) -> None:
    """Gives back the memory that torch keeps unused on a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def upload(numbers: Sequence[float], device: torch.device) -> Tensor:
    """Copies numbers to the device, [n], on a CUDA device without waiting for its work."""
    on_cuda = device.type == "cuda"  # elsewhere copies that do not wait read what is not there (pytorch issue 189690)
    return torch.tensor(numbers, device="cpu", pin_memory=on_cuda).to(device, non_blocking=on_cuda)


def end_of_queue(device: torch.device) -> torch.cuda.Event | None:
    """Returns an event that has passed when all work queued so far is done; None on a CPU, where nothing is queued."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def download(tensor: Tensor) -> Tensor:
    """Copies a tensor to the host; from CUDA without waiting: it is there once an event recorded next has passed."""
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
    return on_host.copy_(tensor, non_blocking=tensor.is_cuda)


def capture(
    run: Callable[[], None], device: torch.device, pool: Any, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Captures the work that `run` queues as a CUDA graph; nothing is computed yet.

    `run` has been run before, so that everything is compiled and loaded, and since then the caller holds `capturing`; it may
    use `generator` beside torch's global one. Graphs that run one after the other share the memory pool. Where something
    cannot be captured, it raises RuntimeError, and stream and allocator are as before. What fails is tried once more: a
    thread of the user's that waits for the whole GPU spoils a capture.
    """
    try:
        return _capture_once(run, device, pool, generator)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        pass
    # Outside the except clause nothing holds on to the failed capture's memory. Its pool may be one that torch has closed.
    return _capture_once(run, device, torch.cuda.graph_pool_handle(), generator)


def _capture_once(
    run: Callable[[], None], device: torch.device, pool: Any, generator: torch.Generator | None
) -> torch.cuda.CUDAGraph:
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    if generator is not None:
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, pool, stream_for("capturing", device), capture_error_mode="thread_local"):
            run()
    except BaseException:
        # Where ending it fails too, torch stays on its stream, and gives out memory as if the capture went on.
        torch.cuda.set_stream(before)
        try:
            torch.cuda.memory._cuda_endAllocateToPool(before.device_index, pool)
        except RuntimeError:  # it has ended
            pass
        else:
            _unended.append(graph)
        raise
    return graph
