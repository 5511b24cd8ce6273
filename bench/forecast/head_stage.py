"""A forecast of the head stage on an H100, from compiled kernels alone. Nothing is measured.

    python -m bench.forecast.head_stage   # part of `make static-report`; adds this Triton's columns to forecast.json

The time of a launch is the longest of these, and one microsecond between launches:

    memory        the bytes it must move, over 3.0 TB/s
    cache         the bytes it asks for, from cache or memory, over 5.5 TB/s
    instructions  programs in turn on a multiprocessor x turns of the loop x cycles of a turn, over 1.755 GHz
    latency       a program from its first to its last instruction (small launches), plus 1 us to begin and to end

The cycles of a turn are those of a warp alone (`cycles.py`), or of all instructions that the warps of one scheduler issue,
or of the matrix units, whichever is most. What small launches read has just been written, and is in the cache.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import triton
import typer

from bench import RESULTS
from bench.forecast import cycles, static_report
from bench.forecast.static_report import Case
from bench.speed import floor
from janus_dola.kernels.gpu.launch import TABLE, matmul_launch, sweep_launch

GPU, MULTIPROCESSORS, CLOCK = "sm_90", 132, 1.755e9
MEMORY, CACHE = 3.0e12, 5.5e12  # bytes a second
OPERATIONS = 4096  # of 16 bits that a multiprocessor's matrix units do in a cycle
GAP, AROUND = 1e-6, 1e-6  # seconds between launches; to begin and end a small one
LAYERS, DTYPE = 5, torch.bfloat16


@dataclass(frozen=True)
class Launch:
    """What is forecast of a launch; times in seconds."""

    shape: str
    images: int
    kernel: str
    configuration: str
    memory: float
    cache: float
    instructions: float

    @property
    def seconds(self) -> float:
        """The forecast, without the gap to the next launch."""
        return max(self.memory, self.cache, self.instructions)


def launches(shape: str, images: int) -> list[Launch]:
    """Those of the stage with 4 candidates and guidance, in order."""
    sizes, table = floor.SHAPES[shape], json.loads(TABLE.read_text(encoding="utf-8"))[GPU]
    assert sizes.width is not None
    rows, pairs = 2 * LAYERS * images, LAYERS * images
    project = matmul_launch("project", GPU, 16, rows, sizes.width)
    codebook = matmul_launch("codebook", GPU, 16, pairs, sizes.codes)
    splits = project.splits
    entries = {"project": asdict(project), "codebook": asdict(codebook)}
    found = []

    def small(case: Case, programs: int, moved: int, turns: int = 1) -> None:
        code = static_report.machine_code(static_report.compiled(case).asm)
        alone = cycles.warp_cycles(code) + (turns - 1) * sum(map(cycles.warp_cycles, cycles.loops(code)))
        issued = -(-programs // MULTIPROCESSORS) * len(code) * case.num_warps // 4
        took = max(alone, issued) / CLOCK + AROUND
        found.append(Launch(shape, images, case.kernel, case.what, 0.0, moved / CACHE, took))

    def product(kernel: str, columns: int, outputs: int, inputs: int, work: floor.Work, written: int) -> None:
        entry = entries[kernel] | {"bits": 16, "max_columns": columns, "max_outputs": None}
        case = replace(static_report.matmul_case(GPU, kernel, entry), requested=None)
        code = static_report.machine_code(static_report.compiled(case).asm)
        body = max(cycles.loops(code), key=len)
        blocks = entry["block_outputs"] * entry["block_columns"] * entry["block_inputs"]
        turn = max(cycles.warp_cycles(body), len(body) * case.num_warps // 4, 2 * blocks // OPERATIONS)
        tiles = -(-outputs // entry["block_outputs"]) * -(-columns // entry["block_columns"]) * entry["splits"]
        turns = -(-inputs // (entry["block_inputs"] * entry["splits"]))
        asked = outputs * inputs * -(-columns // entry["block_columns"])
        asked += columns * inputs * -(-outputs // entry["block_outputs"])
        took = -(-tiles // MULTIPROCESSORS) * turns * turn / CLOCK
        asked = asked * DTYPE.itemsize + written
        found.append(Launch(shape, images, kernel, case.what, work.bytes / MEMORY, asked / CACHE, took))

    small(
        Case(GPU, "normalise", f"{rows} rows", 16, {"GUIDED": False, "BLOCK_D": sizes.hidden}, 8),
        rows, 2 * rows * sizes.hidden * DTYPE.itemsize,
    )  # fmt: skip
    work = floor.project(sizes, LAYERS, images, DTYPE)
    product("project", rows, sizes.width, sizes.hidden, work, 4 * splits * rows * sizes.width)
    block = static_report.project._BLOCK_E
    small(
        Case(GPU, "activate", f"{splits} splits", 16, {"GUIDED": True, "SPLITS_PADDED": splits, "BLOCK_E": block}, 4),
        pairs * -(-sizes.width // block), 4 * splits * rows * sizes.width,
    )  # fmt: skip
    work = floor.codebook(sizes, LAYERS, images, DTYPE)
    product("codebook", pairs, sizes.codes, sizes.width, work, 4 * pairs * sizes.codes)
    case = static_report.sweep_case(GPU, table["sweep"], "4 candidates", LAYERS - 1)
    image_model, turns = (
        case.constants["PARTS"],
        -(-sizes.codes // (case.constants["PARTS"] * sweep_launch(GPU).block_codes)),
    )
    small(case, images * image_model, floor.sweep(sizes, LAYERS, images).bytes, turns)
    return found


def markdown(by_version: dict[str, list[dict]]) -> str:
    """The forecast as tables, one a version of Triton."""
    text = [
        "# A forecast for one H100: no line of this was measured", "",
        "Made by `make static-report` from compiled code; `bench/forecast/head_stage.py` says how.",
        "bfloat16, 4 candidates, guidance.",
        "Microseconds. *instructions / memory*: at most 0.8 for the two products, or they do not keep up with memory.",
    ]  # fmt: skip
    for version, rows in by_version.items():
        text += ["", f"## Triton {version}", ""]
        text += ["| | launch | configuration | memory | cache | instructions | instructions / memory | forecast |"]
        text += ["|" + "---|" * 8]
        stages = list(dict.fromkeys((row["shape"], row["images"]) for row in rows))
        for shape, images in stages:
            own = [Launch(**row) for row in rows if (row["shape"], row["images"]) == (shape, images)]
            for launch in own:
                times = [f"{1e6 * t:.1f}" for t in (launch.memory, launch.cache, launch.instructions)]
                ratio = f"{launch.instructions / launch.memory:.2f}" if launch.kernel in ("project", "codebook") else ""
                cells = [
                    f"{shape}, {images}",
                    launch.kernel,
                    launch.configuration,
                    *times,
                    ratio,
                    f"{1e6 * launch.seconds:.1f}",
                ]
                text.append("| " + " | ".join(cells) + " |")
            limit = floor.head_stage(floor.SHAPES[shape], LAYERS, images, DTYPE).bytes / MEMORY
            whole = sum(launch.seconds + GAP for launch in own)
            text.append(f"| {shape}, {images} | stage | floor {1e6 * limit:.1f} | | | | | "
                        f"{1e6 * whole:.1f} = {whole / limit:.2f} x floor |")  # fmt: skip
    return "\n".join(text) + "\n"


def keep(found: list, outdir: Path, name: str, page: Callable[[dict[str, list[dict]]], str]) -> Path:
    """Writes what this version of Triton makes beside that of others: a record, and a page of it, whose path it returns.

    Args:
        found: dataclasses.
        name: of both files.
        page: makes it of the record, which has a list for each version.
    """
    outdir.mkdir(parents=True, exist_ok=True)
    record = outdir / f"{name}.json"
    by_version = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    by_version[triton.__version__] = [asdict(each) for each in found]
    by_version = dict(sorted(by_version.items()))
    record.write_text(json.dumps(by_version, indent=1) + "\n", encoding="utf-8")
    written = record.with_suffix(".md")
    written.write_text(page(by_version), encoding="utf-8")
    return written


def main(outdir: Annotated[Path, typer.Option(help="Where the forecast goes.")] = RESULTS) -> None:
    """Forecast the stage for this version of Triton, beside those already in the folder."""
    found = [launch for shape in ("1B", "7B") for images in (1, 4, 16) for launch in launches(shape, images)]
    print(f"{len(found)} launches: {keep(found, outdir, 'forecast', markdown)}")


if __name__ == "__main__":
    typer.run(main)
