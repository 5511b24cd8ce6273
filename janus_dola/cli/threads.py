"""How many threads torch computes with: as many as this process has processors, which is not what a container's host has."""

import math
import os
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time, and of how many


def processors() -> int:
    """How many this process may use: those it is bound to, and no more than its container's share of time; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return bound if quota == "max" else max(1, min(bound, math.ceil(int(quota) / int(period))))


def use_processors() -> None:
    """Sets torch's threads to `processors`, where torch took more and the user did not say how many (OMP_NUM_THREADS)."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), processors()))
