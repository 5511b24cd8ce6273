"""What all benchmarks share: the device, how a round is timed, and what the record says of the machine and the floor.

pytest bench/speed --benchmark-only --device cuda --benchmark-json=record.json
"""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
import transformers

from bench import ROOT
from bench.speed import floor, timing


def pytest_addoption(parser):
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.addoption("--device", choices=("cpu", "cuda"), default=default, help="where benchmarks run")
    parser.addoption("--lines", type=Path, help="a file that each benchmark is added to when it is done, one a line")


def pytest_generate_tests(metafunc):
    """A benchmark's attribute `cases` is {device: {id: {argument: value}}}; without cases for a device it is skipped."""
    table = getattr(metafunc.function, "cases", None)
    if table is not None:
        names = list(next(row for rows in table.values() for row in rows.values()))
        rows = table[metafunc.config.getoption("--device")]
        metafunc.parametrize(names, [tuple(row.values()) for row in rows.values()], ids=list(rows))


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") == "cuda":
        for item in items:
            item.add_marker(pytest.mark.benchmark(timer=timing.DeviceClock()))


@pytest.fixture
def device(request) -> str:
    return request.config.getoption("--device")


@pytest.fixture
def timed(benchmark, device, request):
    """Times calls of the same work on different inputs; each round makes all of them once."""

    def run(
        calls: Sequence[Callable[[], object]],
        work: floor.Work | None = None,
        graph: bool = False,
        rounds: int = 20,
        **facts: object,
    ) -> None:
        """`work` is what one call needs at the least, `graph` replays the calls from a CUDA graph on a GPU."""
        graph = graph and device == "cuda"
        together, count = timing.in_graph(calls) if graph else (timing.one_after_the_other(calls), len(calls))
        benchmark.extra_info.update(facts, calls=count, graph=graph)
        if work is not None:
            benchmark.extra_info.update(asdict(work))
        benchmark.pedantic(together, rounds=rounds, warmup_rounds=min(2, rounds // 3), iterations=1)

    yield run
    lines = request.config.getoption("--lines")
    if lines is not None and benchmark.stats is not None:
        stats = benchmark.stats.stats
        numbers = {key: getattr(stats, key) for key in ("median", "q1", "q3", "rounds")}
        found = {"name": request.node.name, "extra_info": benchmark.extra_info, "stats": numbers}
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(made_with(config.getoption("--device")))


def pytest_benchmark_update_commit_info(config, commit_info):
    commit_info.clear()


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["ceilings"] = asdict(timing.ceilings(config.getoption("--device")))


def made_with(device: str) -> dict[str, str]:
    """What a record was made with."""
    found = {"device": torch.cuda.get_device_name() if device == "cuda" else _cpu()}
    if device == "cuda":
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found["torch"] = torch.__version__
    try:
        import triton

        found["triton"] = triton.__version__
    except ModuleNotFoundError:
        found["triton"] = "not installed"
    found["transformers"] = transformers.__version__
    found["python"] = platform.python_version()
    found["revision"] = _output("git", "rev-parse", "--short", "HEAD") or "unknown"
    if _output("git", "status", "--porcelain", "--untracked-files=no"):
        found["revision"] += " with changes"
    found["date"] = datetime.now(timezone.utc).date().isoformat()
    return found


def _cpu() -> str:
    names = [line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return (
        f"CPU, {os.cpu_count()} cores ({names[0] if names else platform.machine()}), {torch.get_num_threads()} threads"
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
