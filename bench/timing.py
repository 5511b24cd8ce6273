"""Time on a GPU by CUDA events: of calls as Python makes them, and of calls in a CUDA graph, which shows kernels alone."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over the repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: list[float]) -> "Timing":
        """Summarises repeats."""
        low, median, high = statistics.quantiles(seconds, n=4)
        return Timing(median, low, high)


def eager(calls: Sequence[Call], repeats: int = 30) -> Timing:
    """Each repeat makes all calls once, one after the other; launching is part of the time.

    Args:
        calls: the same work on different inputs, together larger than the cache.
    """
    for call in calls:
        call()
    return Timing.of([_seconds(lambda: [call() for call in calls]) / len(calls) for _ in range(repeats)])


def graphed(calls: Sequence[Call], repeats: int = 30) -> Timing:
    """As `eager`, but all calls are captured in one CUDA graph, and a repeat replays it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # warm-up, which compiles
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    return Timing.of([_seconds(graph.replay) / len(calls) for _ in range(repeats)])


def _seconds(run: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def copy_bandwidth() -> float:
    """Bytes a second of a device-to-device copy of 1 GiB, read plus written."""
    source = torch.randint(0, 100, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / eager([lambda: target.copy_(source)]).median


def matrix_rate() -> float:
    """Operations a second of an 8192 x 8192 x 8192 product in bfloat16, on random numbers."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / eager([lambda: a @ b]).median
