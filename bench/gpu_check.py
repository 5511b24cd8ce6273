"""Accuracy and speed of the fused kernels and the decode engine on the GPU at hand, in one command: `make gpu-check`.

Runs the tests that need a GPU, compute-sanitizer where it is installed, and the benchmarks. Writes check_<gpu>.md and
bench_<gpu>.json into bench/results, from which `make report` makes the pages. Exits with 1 when anything failed, a test was
skipped, or there is no GPU.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import tables
import torch
import typer
from conftest import made_with
from records import RESULTS, read

ROOT = Path(__file__).parent.parent
ACCURACY = ["tests/kernels/test_fused_on_gpu.py", "tests/janus_dola/test_engine_on_gpu.py"]
SANITIZED = "tests/kernels/test_fused_on_gpu.py::test_all_rows_and_layers"
BENCHMARKS = ("test_head_stage", "test_step", "test_generation", "test_launches", "test_pieces")
NOT_MEASURED = "not measured"


def run_tests(report: Path) -> dict:
    """Runs the tests that need a GPU. Returns counts, seconds and the names of those that did not pass."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        *ACCURACY,
        "-m",
        "gpu",
        f"--junitxml={report}",
        "-q",
        "-ra",
        "--tb=short",
    ]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(finished.stdout[-8000:], flush=True)
    if not report.exists():
        raise typer.Exit(1)
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [case.get("name") for case in suite.iter("testcase") if len(case.findall("failure") + case.findall("error"))]
    return counts | {"seconds": float(suite.get("time")), "not_passed": bad}


def sanitize() -> dict[str, str]:
    """What compute-sanitizer says of the kernels at odd sizes."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return dict.fromkeys(("memcheck", "racecheck"), f"{NOT_MEASURED}: compute-sanitizer is not installed")
    found = {}
    for tool in ("memcheck", "racecheck"):
        only = f"{SANITIZED}[2-3]"  # compiled already; each tool slows kernels down a hundredfold
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", only, "-q"]
        try:
            finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            found[tool] = f"{NOT_MEASURED}: not done after 60 s"
            continue
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", finished.stdout)
        found[tool] = summary[-1] if summary else f"{NOT_MEASURED}: {finished.stdout[-200:].strip()}"
        if summary and finished.returncode != 0:
            found[tool] = f"FAILED: {found[tool]}"
    return found


def benchmark(record: Path) -> int:
    """Runs the benchmarks file by file, adding to the record after each. Returns how many files failed."""
    failed, partial = 0, record.with_suffix(".part")
    record.unlink(missing_ok=True)
    for name in BENCHMARKS:
        command = [sys.executable, "-m", "pytest", f"bench/{name}.py", "--benchmark-only", "--device", "cuda", "-q"]
        command += ["--benchmark-columns=median,iqr,rounds", f"--benchmark-json={partial}"]
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
        if not partial.exists():
            continue
        found = json.loads(partial.read_text(encoding="utf-8"))
        if record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))
            found = before | {"benchmarks": before["benchmarks"] + found["benchmarks"]}
        record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.unlink()
    return failed


def summary(made: dict, tests: dict, sanitizer: dict[str, str]) -> str:
    """What was checked, in short."""
    return (
        f"# Checks on {made['device']}\n\nMade by `make gpu-check`: "
        + ", ".join(f"{name} {value}" for name, value in made.items() if name != "device")
        + f".\n\nTests: {tests['tests']} run, {tests['failures'] + tests['errors']} failed, {tests['skipped']} skipped, "
        + f"{tests['seconds']:.0f} s; not passed: {', '.join(tests['not_passed']) or 'none'}.\n\n"
        + "\n".join(f"compute-sanitizer {tool}: {said}." for tool, said in sanitizer.items())
        + "\n"
    )


def main(
    outdir: Annotated[Path, typer.Option(help="Where the results go.")] = RESULTS,
) -> None:
    """Check and time the fused kernels and the decode engine on this GPU."""
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU here", file=sys.stderr)
        raise typer.Exit(1)
    started = time.time()
    outdir.mkdir(parents=True, exist_ok=True)
    made = made_with("cuda")
    print(made, flush=True)
    name = re.sub(r"[^a-z0-9]+", "_", made["device"].lower()).strip("_")
    tests = run_tests(outdir / "gpu_tests.xml")
    (outdir / "gpu_tests.xml").unlink()
    sanitizer = sanitize()
    text = summary(made, tests, sanitizer)
    (outdir / f"check_{name}.md").write_text(text, encoding="utf-8")
    print(text, flush=True)
    record = outdir / f"bench_{name}.json"
    failed = benchmark(record)
    if record.exists():
        print(tables.report(read(record)), flush=True)
    bad = tests["failures"] + tests["errors"] + tests["skipped"] + failed
    bad += sum(said.startswith("FAILED") for said in sanitizer.values())
    if bad or tests["tests"] == 0:
        print(f"gpu-check: {bad} checks did not pass: {tests['not_passed']}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"gpu-check: all passed in {time.time() - started:.0f} s; `make report` puts the times into the pages")


if __name__ == "__main__":
    typer.run(main)
