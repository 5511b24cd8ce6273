"""Accuracy and speed of the fused kernels on the GPU at hand, in one command: `make gpu-check`.

Runs the tests that need a GPU, compute-sanitizer where it is installed, and the latency table; writes all of it to
bench/results/<gpu>.json and .md. Exits with 1 when anything failed, a test was skipped, or there is no GPU.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import head_stage
import timing
import torch
import transformers
import triton
import typer

from janus_dola.kernels.launch import generation_of

ROOT = Path(__file__).parent.parent
ACCURACY = ["tests/kernels/test_fused_on_gpu.py"]
SANITIZED = "tests/kernels/test_fused_on_gpu.py::test_all_rows_and_layers"
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


def versions() -> dict[str, str]:
    """What the results were made with."""
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "gpu": torch.cuda.get_device_name(),
        "generation": generation_of(torch.device("cuda")),
        "driver": driver.stdout.strip(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
        "revision": revision.stdout.strip() or "unknown",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def markdown(results: dict) -> str:
    """The results as Markdown."""
    made, tests, ceilings = results["made_with"], results["tests"], results["ceilings"]
    text = [
        f"# Fused kernels on {made['gpu']}",
        "",
        "Made by `make gpu-check`: "
        + ", ".join(f"{name} {value}" for name, value in made.items() if name != "gpu")
        + ".",
        "",
        f"Tests: {tests['tests']} run, {tests['failures'] + tests['errors']} failed, {tests['skipped']} skipped, "
        f"{tests['seconds']:.0f} s. "
        + " ".join(f"compute-sanitizer {tool}: {said}." for tool, said in results["sanitizer"].items()),
        "",
        f"Ceilings measured: copy {ceilings['bytes_per_second'] / 1e12:.2f} TB/s, bf16 products "
        f"{ceilings['operations_per_second'] / 1e12:.0f} TFLOP/s.",
        "",
        "Head stage, norm to sampled code, bfloat16, guidance 5, alpha 0.1; microseconds, median (quartiles). The floor is",
        "the time to read weights and hidden states once, or to make the products, whichever is longer. *of floor* is",
        "triton's median over it. Where it does not say eager, calls are replayed from a CUDA graph.",
        "",
    ]
    names = list(dict.fromkeys(name for row in results["head_stage"] for name in row["seconds"]))
    columns = ["shape", "images", "candidates", "floor", "of floor", *names]
    text += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in results["head_stage"]:
        cells = [row["shape"], row["images"], row["candidates"], f"{row['floor_seconds'] * 1e6:.1f}"]
        cells.append(f"{row['seconds']['triton']['median'] / row['floor_seconds']:.2f} x")
        for name in names:
            value = row["seconds"].get(name)
            form = "{:.1f} ({:.1f}-{:.1f})"
            cells.append("" if value is None else form.format(*(1e6 * value[key] for key in ("median", "low", "high"))))
        text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def main(
    outdir: Annotated[Path, typer.Option(help="Where the results go.")] = ROOT / "bench" / "results",
    shapes: Annotated[list[str], typer.Option(help="Head shapes to time.")] = ["1B", "7B"],  # noqa: B006
) -> None:
    """Check and time the fused kernels on this GPU."""
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU here", file=sys.stderr)
        raise typer.Exit(1)
    started = time.time()
    outdir.mkdir(parents=True, exist_ok=True)
    made = versions()
    print(made, flush=True)
    results: dict = {"made_with": made, "tests": run_tests(outdir / "gpu_tests.xml")}
    (outdir / "gpu_tests.xml").unlink()
    results["sanitizer"] = sanitize()
    print(results["sanitizer"], flush=True)
    results["ceilings"] = {
        "bytes_per_second": timing.copy_bandwidth(),
        "operations_per_second": timing.matrix_rate(),
    }
    print(results["ceilings"], flush=True)
    results["head_stage"] = head_stage.measure(shapes, *results["ceilings"].values())
    results["seconds"] = time.time() - started
    name = re.sub(r"[^a-z0-9]+", "_", made["gpu"].lower()).strip("_")
    (outdir / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (outdir / f"{name}.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))
    tests = results["tests"]
    bad = tests["failures"] + tests["errors"] + tests["skipped"]
    bad += sum(said.startswith("FAILED") for said in results["sanitizer"].values())
    if bad or tests["tests"] == 0:
        print(f"gpu-check: {bad} checks did not pass: {tests['not_passed']}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"gpu-check: all passed in {results['seconds']:.0f} s")


if __name__ == "__main__":
    typer.run(main)
