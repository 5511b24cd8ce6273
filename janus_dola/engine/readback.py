"""Reads progress from the device some passes late, so that the host never waits for a pass."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_AHEAD = 4  # passes by which the host may be ahead


class Readback:
    """Small tensors being copied to the host, each with a host-side tag, in a queue."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._queued: deque[tuple[Any, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, tag: Any, numbers: Tensor) -> None:
        """Queues a copy that holds the numbers after all passes queued so far."""
        if self._on_gpu:
            copy = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
            self._queued.append((tag, copy, torch.cuda.current_stream(numbers.device).record_event()))
        else:
            self._queued.append((tag, numbers.clone(), None))

    def arrived(self) -> Iterator[tuple[Any, list[int]]]:
        """Yields tags and numbers that have arrived, oldest first; waits only if the host is too far ahead."""
        while self._queued:
            tag, numbers, event = self._queued[0]
            if event is not None and not event.query():
                if len(self._queued) <= _AHEAD:
                    return
                event.synchronize()
            self._queued.popleft()
            yield tag, numbers.tolist()
