"""The clock of the benchmarks, on a GPU that is simulated: the host takes 20 us for each of its calls."""

from contextlib import nullcontext

import pytest
import torch

from bench.speed import timing

HOST, SPIN = 20e-6, 1 / 1.755e9  # seconds a call, and a cycle


class Device:
    """A host and a GPU that works through what is queued."""

    def __init__(self, monkeypatch) -> None:
        self.host = self.busy_until = 0.0
        self.recorded: list[float] | None = None  # what a graph that is being captured holds
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = device.queue(0.0)

            def synchronize(self):
                device.host = max(device.host + HOST, self.at)

            def elapsed_time(self, end):
                return 1000 * (end.at - self.at)

        class Graph:
            def replay(self):
                device.queue(sum(self.work))

        class Capture:
            def __init__(self, graph):
                self.graph = graph

            def __enter__(self):
                device.recorded = self.graph.work = []

            def __exit__(self, *_):
                device.recorded = None

        stream = type("Stream", (), {"wait_stream": lambda *_: None})
        for name, stand_in in {
            "Event": Event, "CUDAGraph": Graph, "graph": Capture, "Stream": stream, "current_stream": stream,
            "stream": lambda _: nullcontext(), "_sleep": lambda cycles: device.queue(cycles * SPIN),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def queue(self, seconds: float) -> float:
        """Queues work, and says when it will be done."""
        if self.recorded is not None:
            self.recorded.append(seconds)
            return self.busy_until
        self.host += HOST
        self.busy_until = max(self.host, self.busy_until) + seconds
        return self.busy_until


@pytest.fixture
def gpu(monkeypatch):
    return Device(monkeypatch)


def test_the_hosts_latency_is_in_no_timed_round(gpu):
    for took in timing.seconds(lambda: gpu.queue(50e-6), "cuda"):
        assert took == pytest.approx(50e-6, abs=1e-6)


def test_the_clock_counts_what_a_benchmark_times_and_nothing_between(gpu):
    now = timing.clock("cuda")
    for work in (1e-6, 50e-6, 3e-3):
        start = now()
        gpu.queue(work)
        assert now() - start == pytest.approx(work, abs=1e-6)
        gpu.host += 1.0  # what a benchmark does between its rounds


@pytest.mark.parametrize(("microseconds", "turns"), [(7, 72), (60, 9), (600, 1), (5000, 1)])
def test_a_graph_holds_a_millisecond_of_work(gpu, microseconds, turns):
    calls = [lambda: gpu.queue(microseconds * 1e-6)] * 2
    replay, count = timing.in_graph(calls)
    assert count == 2 * turns
    took = timing.seconds(replay, "cuda")
    assert min(took) >= timing.LEAST_WORK * 0.999
    assert [t / count for t in took] == pytest.approx([microseconds * 1e-6] * len(took), rel=0.01)
