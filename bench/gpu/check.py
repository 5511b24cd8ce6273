"""Accuracy and speed of the kernels and the decode engine on the GPU at hand, in stages that each end within ten minutes.

    python -m bench.gpu head              # one stage
    make gpu-check                          # all of them, the most valuable first; STAGE=head for one

    correct   the head stage and the blocks against float64, and each way to launch a pass
    head      the head stage and its launches against the floor
    step      one pass over images half way drawn
    images    whole images, beside the plain loop and transformers
    text      tokens of an 8B text model, with DoLa and without
    tests     all other tests that need a GPU
    rest      the sanitizers of CUDA and of Triton, other libraries' pieces

Each begins with the compilation of its kernels, by up to 16 processes at once. What is found is written as it comes, into
$OUT or bench/results: check_<gpu>.md, and for each stage with times bench_<gpu>_<stage>.json, from which `make report` makes
the pages: put the files of all stages there. A part that is not done in its time is ended and said to be so, with all that
it started. Exits with 1 when anything failed, was skipped or ended, a package is missing, or there is no GPU.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import torch
import typer

from bench import RESULTS, ROOT
from bench.report import tables
from bench.report.records import read
from bench.speed.conftest import made_with
from bench.speed.timing import ceilings
from janus_dola.images.whole_files import write_whole

LIMIT = 540  # seconds a stage may take; installing and importing come on top, and its end is within ten minutes
PYTEST = [sys.executable, "-m", "pytest", "-q"]


@dataclass(frozen=True)
class Part:
    """One command of a stage."""

    name: str
    command: tuple[str, ...]
    seconds: int  # it may take
    makes: str = "log"  # "tests": a report of pytest; "times": benchmarks; "sanitizer"


def _compiling(stage: str, seconds: int) -> Part:
    return Part("compiling", (sys.executable, "-m", "bench.gpu.compiling", stage), seconds)


def _tests(name: str, seconds: int, *arguments: str) -> Part:
    return Part(name, (*PYTEST, *arguments, "-m", "gpu", "-ra", "--tb=short"), seconds, "tests")


def _times(file: str, seconds: int, *arguments: str) -> Part:
    return Part(
        file, (*PYTEST, f"bench/speed/{file}.py", "--benchmark-only", "--device", "cuda", *arguments), seconds, "times"
    )


def _sanitizer(tool: str) -> Part:
    only = "tests/kernels/test_head_triton_on_gpu.py::test_all_rows_and_layers[2-3]"
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *PYTEST, only)
    return Part(tool, command, 120, "sanitizer")


ENGINES = "all_engines or one_launch or cpu"  # tests that come first
STAGES = {
    "correct": [
        _compiling("correct", 120),
        _tests("quick tests", 240, "tests/kernels/test_quick_on_gpu.py"),
        _tests("engines", 170, "tests/janus_dola/test_engine_on_gpu.py", "-k", ENGINES),
    ],
    "head": [_compiling("head", 60), _times("test_head_stage", 300), _times("test_launches", 170)],
    "step": [_compiling("step", 60), _times("test_step", 220, "-k", "1B"), _times("test_step", 250, "-k", "7B")],
    "images": [
        _compiling("images", 60),
        _times("test_generation", 170, "-k", "1B"),
        _times("test_generation", 300, "-k", "7B"),
    ],
    "text": [_times("test_text", 300)],
    "tests": [
        _compiling("tests", 110),
        _tests("engine tests", 170, "tests/janus_dola/test_engine_on_gpu.py", "-k", f"not ({ENGINES})"),
        _tests("kernel tests", 250, "tests/kernels/test_head_triton_on_gpu.py"),
    ],
    "rest": [
        _times("test_pieces", 60),
        _sanitizer("memcheck"),
        Part("consan", (sys.executable, "-m", "bench.gpu.sanitized"), 70, "sanitizer"),
    ],
}

Runner = Callable[[tuple[str, ...], float, Path], int | None]


def run(command: tuple[str, ...], seconds: float, log: Path) -> int | None:
    """Runs a command in the repository's root, its output into a file. Its exit status; None if it was not done in time.

    Whatever it started ends with it: workers of pools would go on beside the next part.
    """
    cached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if "compute-sanitizer" in command[0] else {}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | cached, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Check:
    """Runs the parts of a stage one after the other, and writes what each has found before the next begins."""

    def __init__(self, made: dict[str, str], outdir: Path, runner: Runner, now: Callable[[], float]) -> None:
        self._name = re.sub(r"[^a-z0-9]+", "_", made["device"].lower()).strip("_")
        self.page = outdir / f"check_{self._name}.md"
        self._made, self._outdir, self._runner, self._now = made, outdir, runner, now

    def record(self, stage: str) -> Path:
        """Returns the file for a stage's times."""
        return self._outdir / f"bench_{self._name}_{stage}.json"

    def stage(self, stage: str, ceilings_of: Callable[[], dict]) -> int:
        """Returns how many parts did not pass."""
        began, bad = self._now(), 0
        self._say(f"\n## {stage}\n\n" + ", ".join(f"{name} {value}" for name, value in self._made.items()) + "\n")
        if any(part.makes == "times" for part in STAGES[stage]):
            self._add(stage, {"machine_info": self._made, "ceilings": ceilings_of()}, [])
        for part in STAGES[stage]:
            seconds = min(part.seconds, LIMIT - (self._now() - began))
            said = self._part(stage, part, seconds) if seconds >= 1 else "NOT DONE: no time was left"
            self._say(f"- {part.name}: {said}")
            bad += said.startswith(("FAILED", "NOT DONE"))
        return bad

    def _part(self, stage: str, part: Part, seconds: float) -> str:
        if part.makes == "sanitizer" and shutil.which(part.command[0]) is None:
            return f"not measured: {part.command[0]} is not installed"
        label = f"{stage}_{part.name.replace(' ', '_')}_{len(list(self._outdir.glob('*.log')))}"
        log, output = self._outdir / f"{label}.log", self._outdir / f"{label}.part"
        option = {"tests": (f"--junitxml={output}",), "times": (f"--lines={output}",)}.get(part.makes, ())
        began = self._now()
        status = self._runner((*part.command, *option), seconds, log)
        took = f"{self._now() - began:.0f} s"
        said = took
        if part.makes == "times" and output.exists():
            lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            self._add(stage, {}, lines)
            said = f"{len(lines)} times, {took}"
        elif part.makes == "tests" and output.exists():
            counts, names = _suite(output)
            said = (
                f"{counts['tests']} run, {counts['skipped']} skipped, {took}; not passed: {', '.join(names) or 'none'}"
            )
            if status == 0 and (counts["skipped"] or counts["tests"] == 0):
                status = 1
        elif part.makes == "sanitizer":
            said = f"{' '.join(re.findall(r'SUMMARY: (.*)', log.read_text(encoding='utf-8')))} {took}"
        output.unlink(missing_ok=True)
        if status is None:
            return f"NOT DONE within {seconds:.0f} s; {said}"
        return f"FAILED: {said}; see {log.name}" if status else said

    def _add(self, stage: str, about: dict, benchmarks: list[dict]) -> None:
        """Adds benchmarks to a stage's record, and replaces those that it has already."""
        record = self.record(stage)
        old = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"benchmarks": []}
        new = {benchmark["name"] for benchmark in benchmarks}
        kept = [benchmark for benchmark in old["benchmarks"] if benchmark["name"] not in new]
        whole = json.dumps(old | about | {"benchmarks": kept + benchmarks}, indent=1) + "\n"
        write_whole(record, whole.encode())

    def _say(self, text: str) -> None:
        print(text, flush=True)
        with self.page.open("a", encoding="utf-8") as page:
            page.write(text + "\n")


def _suite(report: Path) -> tuple[dict[str, int], list[str]]:
    """Counts, and the names of the tests that did not pass, of a report that pytest has written."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    cases = suite.iter("testcase")
    return counts, [case.get("name", "") for case in cases if len(case.findall("failure") + case.findall("error"))]


def main(
    stages: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(STAGES)}; all if none is named.")] = None,
    outdir: Annotated[Path | None, typer.Option(help="Where results go; $OUT, or bench/results without it.")] = None,
) -> None:
    """Check and time the kernels and the decode engine on this GPU."""
    for stage in stages or ():
        if stage not in STAGES:
            raise typer.BadParameter(f"a stage must be one of {list(STAGES)}, got {stage!r}")
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU here", file=sys.stderr)
        raise typer.Exit(1)
    outdir = outdir or Path(os.environ.get("OUT", RESULTS))
    outdir.mkdir(parents=True, exist_ok=True)
    check = Check(made_with("cuda"), outdir, run, time.monotonic)
    bad = sum(check.stage(stage, lambda: vars(ceilings("cuda"))) for stage in stages or STAGES)
    for stage in stages or STAGES:
        if check.record(stage).exists():
            print(tables.report(read(check.record(stage))), flush=True)
    if bad:
        print(f"gpu-check: {bad} parts did not pass", file=sys.stderr)
        raise typer.Exit(1)
    print("gpu-check: all passed; `make report` puts the times into the pages")
