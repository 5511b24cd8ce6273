"""How benchmarks take time: on a GPU by device events, kernels replayed from a CUDA graph. And what a device can do."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
LEAST_WORK = 1e-3  # seconds of it in a graph that is timed
_HEAD_START = 2_000_000  # cycles of a GPU, about a millisecond: far more than the host needs to launch a graph


class DeviceClock:
    """Seconds on a GPU's own clock, for pytest-benchmark.

    A reading ends the interval before it and begins the next one. The GPU is kept busy before that beginning, so that the
    work to be timed is queued when it comes, and the host's latency is in no interval.
    """

    def __init__(self) -> None:
        self._now, self._last = 0.0, self._event()

    def __call__(self) -> float:
        event = self._event()
        event.synchronize()
        self._now += self._last.elapsed_time(event) / 1000  # from reading to reading: a float32 of ms is fine for that
        torch.cuda._sleep(_HEAD_START)
        self._last = self._event()
        return self._now

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def clock(device: str) -> Callable[[], float]:
    """Returns a clock of seconds, as a benchmark on this device takes them."""
    return DeviceClock() if device == "cuda" else time.perf_counter


def in_graph(calls: Sequence[Call]) -> tuple[Call, int]:
    """Captures all calls in one CUDA graph, after a warm-up that compiles: kernels alone, without Python's launching.

    Returns:
        what replays the graph, and the number of calls in it: as often all of `calls` as make a millisecond of work.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    once = _captured(calls)
    turns = math.ceil(LEAST_WORK / min(seconds(once, "cuda", repeats=5)))
    return (once if turns == 1 else _captured([*calls] * turns)), turns * len(calls)


def _captured(calls: Sequence[Call]) -> Call:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def one_after_the_other(calls: Sequence[Call]) -> Call:
    """Makes all calls as Python makes them."""

    def run() -> None:
        for call in calls:
            call()

    return run


def seconds(run: Call, device: str, repeats: int = 15) -> list[float]:
    """Returns the seconds of some repeats, after three that do not count."""
    now = clock(device)
    times = []
    for _ in range(repeats + 3):
        start = now()
        run()
        times.append(now() - start)
    return times[3:]


@dataclass(frozen=True)
class Ceilings:
    """What a device was measured to be capable of."""

    bytes_per_second: float
    operations_per_second: dict[str, float]  # by dtype


def ceilings(device: str) -> Ceilings:
    """Measures a copy within memory, read plus written, and a square matrix product of random numbers: the best repeat.

    On a GPU memory is read, as weights are, and not copied, which takes some percent longer.
    """
    on_gpu = device == "cuda"
    source = torch.randint(0, 100, (1 << (30 if on_gpu else 28),), dtype=torch.uint8, device=device)
    if on_gpu:
        numbers = source.view(torch.int32)
        bandwidth = source.numel() / min(seconds(lambda: torch.amax(numbers), device))
    else:
        target = torch.empty_like(source)
        bandwidth = 2 * source.numel() / min(seconds(lambda: target.copy_(source), device))
    size, rates = 8192 if on_gpu else 1024, {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / min(seconds(lambda a=a, b=b: a @ b, device))
    return Ceilings(bandwidth, rates)
