"""A pass as a CUDA graph: one launch for all its kernels."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from janus_dola.engine.devices import stream_for


def capture(
    run: Callable[[], None], device: torch.device, pool: Any, generator: torch.Generator | None = None
) -> torch.cuda.CUDAGraph:
    """Captures the work that `run` queues as a graph; nothing is computed yet.

    Args:
        run: has been run before, so that everything is compiled and loaded.
        pool: gives the memory. Graphs that run one after the other share it.
        generator: used by `run` beside torch's global one.
    Raises:
        RuntimeError: something cannot be captured. Stream and allocator are as they were.
    """
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    if generator is not None:
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, pool, stream_for("capturing", device), capture_error_mode="thread_local"):
            run()
    except BaseException:
        # Where ending it fails too, torch stays on its stream, and gives out memory as if the capture went on.
        torch.cuda.set_stream(before)
        with suppress(RuntimeError):  # it has ended
            torch.cuda.memory._cuda_endAllocateToPool(before.device_index, pool)
        raise
    return graph
