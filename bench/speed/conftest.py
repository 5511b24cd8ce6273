"""Gives all benchmarks the device, the timing of a round, and a record of the machine and the floor.

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
    parser.addoption("--lines", type=Path, help="a file to which each benchmark adds a line when it is done")
    parser.addoption("--tiny", action="store_true", help="run what is timed once, at tiny sizes (on a CPU)")


def pytest_configure(config):
    if config.getoption("--tiny"):
        from bench.speed import tiny

        tiny.shrink(pytest.MonkeyPatch())
        torch.compiler.set_stance("force_eager")


def pytest_generate_tests(metafunc):
    """Reads a benchmark's attribute `cases`, {device: {id: {argument: value}}}; without cases for a device it is skipped."""
    table = getattr(metafunc.function, "cases", None)
    if table is not None:
        names = list(next(row for rows in table.values() for row in rows.values()))
        rows = table[metafunc.config.getoption("--device")]
        if metafunc.config.getoption("--tiny"):
            from bench.speed import tiny

            rows = tiny.cover(table)
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
    """Times calls of the same work on different inputs; each round makes all calls once."""

    def run(
        calls: Sequence[Callable[[], object]],
        work: floor.Work | None = None,
        graph: bool = False,
        rounds: int = 20,
        **facts: object,
    ) -> None:
        """Times `calls`; `work` is the least that one call needs, and `graph` replays them from a CUDA graph on a GPU."""
        graph = graph and device == "cuda"
        if request.config.getoption("--tiny"):
            calls = calls[:1]
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
        record = {"name": request.node.name, "extra_info": benchmark.extra_info, "stats": numbers}
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info.update(made_with(config.getoption("--device")))


def pytest_benchmark_update_commit_info(config, commit_info):
    commit_info.clear()


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["ceilings"] = asdict(timing.ceilings(config.getoption("--device")))


def made_with(device: str) -> dict[str, str]:
    """Returns what a record is made with: device, versions, revision and date."""
    facts = {"device": torch.cuda.get_device_name() if device == "cuda" else _cpu()}
    if device == "cuda":
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts["torch"] = torch.__version__
    try:
        import triton

        facts["triton"] = triton.__version__
    except ModuleNotFoundError:
        facts["triton"] = "not installed"
    facts["transformers"] = transformers.__version__
    facts["python"] = platform.python_version()
    facts["revision"] = _output("git", "rev-parse", "--short", "HEAD") or "unknown"
    if _output("git", "status", "--porcelain", "--untracked-files=no"):
        facts["revision"] += " with changes"
    facts["date"] = datetime.now(timezone.utc).date().isoformat()
    return facts


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
