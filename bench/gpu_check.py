"""Accuracy and speed of the fused kernels and the decode engine on the GPU at hand, in one command: `make gpu-check`.

Runs the tests that need a GPU, compute-sanitizer where it is installed, and the measurements; writes all of it to
bench/results/<gpu>.json and .md, anew after each part. Exits with 1 when anything failed, a test was skipped, or there is
no GPU.
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

import generation
import head_stage
import timing
import torch
import transformers
import triton
import typer

from janus_dola.kernels.launch import generation_of

ROOT = Path(__file__).parent.parent
ACCURACY = ["tests/kernels/test_fused_on_gpu.py", "tests/janus_dola/test_engine_on_gpu.py"]
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
    """The results as Markdown, as far as there are any."""
    made, tests = results["made_with"], results["tests"]
    text = [
        f"# Fused kernels and decode engine on {made['gpu']}",
        "",
        "Made by `make gpu-check`: "
        + ", ".join(f"{name} {value}" for name, value in made.items() if name != "gpu")
        + ".",
        "",
        f"Tests: {tests['tests']} run, {tests['failures'] + tests['errors']} failed, {tests['skipped']} skipped, "
        f"{tests['seconds']:.0f} s. "
        + " ".join(f"compute-sanitizer {tool}: {said}." for tool, said in results["sanitizer"].items()),
        "",
        f"Ceilings measured: copy {results['ceilings']['bytes_per_second'] / 1e12:.2f} TB/s, bf16 products "
        f"{results['ceilings']['operations_per_second'] / 1e12:.0f} TFLOP/s.",
    ]
    sections = {
        "head_stage": _head_stage_table,
        "steps": _steps_table,
        "whole_images": _whole_images_table,
        "memory": _memory_table,
    }
    for name, table in sections.items():
        text += ["", *(table(results[name]) if results.get(name) else [f"{name}: {NOT_MEASURED}"])]
    return "\n".join(text) + "\n"


def _table(columns: list[str], rows: list[list]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _time(timing: dict, unit: float = 1e6) -> str:
    return "{:.1f} ({:.1f}-{:.1f})".format(*(unit * timing[key] for key in ("median", "low", "high")))


def _head_stage_table(found: list[dict]) -> list[str]:
    names = list(dict.fromkeys(name for row in found for name in row["seconds"]))
    rows = []
    for row in found:
        share = row["seconds"]["triton"]["median"] / row["floor_seconds"]
        times = [_time(row["seconds"][name]) if name in row["seconds"] else "" for name in names]
        floor = f"{row['floor_seconds'] * 1e6:.1f}"
        rows.append([row["shape"], row["images"], row["candidates"], floor, f"{share:.2f} x", *times])
    return [
        "Head stage, norm to sampled code, bfloat16, guidance 5, alpha 0.1; microseconds, median (quartiles). The floor is",
        "the time to read weights and hidden states once, or to make the products, whichever is longer. *of floor* is",
        "triton's median over it. Where it does not say eager, calls are replayed from a CUDA graph.",
        "",
        *_table(["shape", "images", "candidates", "floor", "of floor", *names], rows),
    ]


def _steps_table(found: list[dict]) -> list[str]:
    rows = []
    for row in found:
        plain, dola = row["seconds"]["baseline"], row["seconds"]["DoLa"]
        rows.append(
            [row["shape"], row["images"], row["engine"], f"{row['floor_seconds'] * 1e3:.2f}", _time(plain, 1e3),
             _time(dola, 1e3), f"{dola['median'] / plain['median']:.3f}", f"{row['floor_seconds'] / dola['median']:.0%}"]
        )  # fmt: skip
    return [
        "A whole decode step, random weights, bfloat16, half way through an image; milliseconds, median (quartiles). The",
        "floor is the time to read the blocks' weights, the visible keys and values and the head once.",
        "",
        *_table(["shape", "images", "engine", "floor", "baseline", "DoLa", "DoLa / baseline", "share of floor"], rows),
    ]


def _whole_images_table(found: list[dict]) -> list[str]:
    rows = [
        [row["shape"], row["images"], name, f"{seconds:.2f}", f"{row['images'] / seconds:.2f}"]
        for row in found
        for name, seconds in row["seconds"].items()
    ]
    return [
        "Whole images of 576 codes, prompt to pictures, random weights, bfloat16. Ours: median of three runs; peers: one.",
        "",
        *_table(["shape", "images", "way", "seconds", "images a second"], rows),
    ]


def _memory_table(found: list[dict]) -> list[str]:
    rows = []
    for row in found:
        plain, dola = (row["bytes"][way] / 2**20 for way in ("baseline", "DoLa"))
        rows.append([row["shape"], row["images"], f"{plain:.0f}", f"{dola:.0f}", f"{dola - plain:.1f}"])
    return [
        "Memory at the most while images are drawn, beyond the model; MiB.",
        "",
        *_table(["shape", "images", "baseline", "DoLa", "DoLa adds"], rows),
    ]


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
    name = re.sub(r"[^a-z0-9]+", "_", made["gpu"].lower()).strip("_")

    def save() -> None:
        results["seconds"] = time.time() - started
        (outdir / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (outdir / f"{name}.md").write_text(markdown(results), encoding="utf-8")

    results["head_stage"] = head_stage.measure(shapes, *results["ceilings"].values())
    save()
    for table, row in generation.measure(shapes, *results["ceilings"].values()):
        print(table, row, flush=True)
        results.setdefault(table, []).append(row)
        save()
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
