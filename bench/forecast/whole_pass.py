"""A forecast of a whole pass on an H100 with the block kernels, from compiled code alone. Nothing is measured.

    python -m bench.forecast.whole_pass     # part of `make static-report`

    pass = blocks x (six launches, with a microsecond after each) + head stage + small launches

Times of launches are made as in `head_stage.py`: the longest of memory, cache and instructions. Attention moves the keys and
values of all visible positions; as many of its programs run at once on a multiprocessor as have room for their registers.
The floor is `floor.decode_pass` over the same 3.0 TB/s: each weight, key and value read once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import triton
import typer

from bench import RESULTS
from bench.forecast import cycles, head_stage, static_report
from bench.forecast.head_stage import AROUND, CACHE, CLOCK, DTYPE, GAP, GPU, MEMORY, MULTIPROCESSORS, Launch
from bench.forecast.static_report import Case
from bench.speed import floor
from janus_dola.kernels.gpu.attention import CHUNK

VISIBLE = 384  # positions, half way through an image
SMALL = 1.6e-6  # seconds of a small launch by torch, gap included
REGISTERS = 65536  # of a multiprocessor
CASES = [("1B", 1, 1), ("1B", 4, 1), ("1B", 4, 8), ("7B", 1, 1), ("7B", 4, 1), ("7B", 16, 1)]  # shape, images, window


@dataclass(frozen=True)
class Step:
    """What is forecast of a pass; times in seconds."""

    shape: str
    images: int
    window: int
    blocks: int
    launches: list[Launch]  # of a block
    head: float
    floor: float

    @property
    def seconds(self) -> float:
        """The forecast."""
        return self.blocks * sum(launch.seconds + GAP for launch in self.launches) + self.head + self.outside

    @property
    def outside(self) -> float:
        """Around blocks and head: embedding, positions, accepting."""
        return small_launches(self.window) * SMALL


def small_launches(window: int) -> int:
    """How many torch makes around blocks and head, as counted on tensors without a device; a window corrects guesses."""
    return 39 if window == 1 else 53


def step(name: str, images: int, window: int) -> Step:
    """A pass over images half way drawn, with DoLa and guidance."""
    shape, rows = floor.BLOCKS[name], 2 * images * window
    cases = [case for case in static_report.block_cases(GPU, shape, window) if case.kernel not in ("gate", "weigh")]
    found = [_launch(case, shape, images, window) for case in cases]
    head = sum(launch.seconds + GAP for launch in head_stage.launches(name, images * window))
    hidden, inner = shape.hidden, shape.inner
    weights = shape.number * (4 * hidden * hidden + 3 * hidden * inner)
    key_values = shape.number * 2 * hidden * VISIBLE
    least = floor.decode_pass(weights, key_values, floor.SHAPES[name], head_stage.LAYERS, images, window, DTYPE)
    assert rows <= 64, "more rows than the products are made for"
    return Step(name, images, window, shape.number, found, head, least.bytes / MEMORY)


def _launch(case: Case, shape: floor.BlockShape, images: int, window: int) -> Launch:
    compiled = static_report.compiled(case)
    code = static_report.machine_code(compiled.asm)
    rows, hidden = 2 * images, shape.hidden
    if case.kernel in ("normed", "added"):
        outputs, inputs, written = {
            "qkv": (3 * hidden, hidden, 3 * hidden),
            "output": (hidden, hidden, 2 * hidden),
            "gate and up": (2 * shape.inner, hidden, shape.inner),
            "down": (hidden, shape.inner, 2 * hidden),
        }[case.what.split(",")[0]]
        columns, constants = rows * window, case.constants
        of_columns = triton.cdiv(columns, constants["BLOCK_ROWS"])
        tiles = triton.cdiv(outputs, constants["BLOCK_O"]) * of_columns
        body = max(cycles.loops(code), key=len)
        blocks = constants["BLOCK_O"] * constants["BLOCK_ROWS"] * constants["BLOCK_D"]
        turn = max(cycles.warp_cycles(body), len(body) * case.num_warps // 4, 2 * blocks // head_stage.OPERATIONS)
        took = triton.cdiv(tiles, MULTIPROCESSORS) * triton.cdiv(inputs, constants["BLOCK_D"]) * turn / CLOCK
        asked = outputs * inputs * of_columns + columns * (inputs * tiles // of_columns + written)
        memory = outputs * inputs * DTYPE.itemsize / MEMORY
        return Launch(shape.name, images, case.kernel, case.what, memory, asked * DTYPE.itemsize / CACHE, took)
    chunks = VISIBLE // CHUNK
    partial = 4 * rows * window * hidden * chunks
    programs, moved, seconds = (
        (rows * shape.heads * chunks, partial, rows * 2 * hidden * VISIBLE * DTYPE.itemsize / MEMORY)
        if case.kernel == "attention"
        else (rows * window * shape.heads, partial, 0.0)
    )
    registers, _ = static_report.resources(GPU, compiled.asm)
    at_once = MULTIPROCESSORS * max(1, REGISTERS // (registers * 32 * case.num_warps))
    issued = triton.cdiv(programs, MULTIPROCESSORS) * len(code) * case.num_warps // 4
    took = max(triton.cdiv(programs, at_once) * cycles.warp_cycles(code), issued) / CLOCK + AROUND
    return Launch(shape.name, images, case.kernel, case.what, seconds, moved / CACHE, took)


def markdown(by_version: dict[str, list[dict]]) -> str:
    """The forecast as tables: passes, then the launches of a block."""
    text = [
        "# A forecast of a pass on one H100: no line of this was measured", "",
        "Made by `make static-report` from compiled code; `bench/forecast/whole_pass.py` says how. bfloat16, 4 candidates,",
        f"guidance, {VISIBLE} positions visible, blocks by our own kernels.",
    ]  # fmt: skip
    for version, rows in by_version.items():
        steps = [Step(**row | {"launches": [Launch(**launch) for launch in row["launches"]]}) for row in rows]
        text += ["", f"## Triton {version}", "", "Milliseconds.", ""]
        text += ["| | images | window | blocks | head | pass | floor | floor / pass |", "|" + "---|" * 8]
        for each in steps:
            blocks = each.seconds - each.head - each.outside
            times = [f"{1e3 * t:.2f}" for t in (blocks, each.head, each.seconds, each.floor)]
            cells = [each.shape, each.images, each.window, *times, f"{each.floor / each.seconds:.0%}"]
            text.append("| " + " | ".join(map(str, cells)) + " |")
        text += ["", "Microseconds of the launches of a block.", ""]
        text += ["| | images | window | launch | configuration | memory | cache | instructions | forecast |"]
        text += ["|" + "---|" * 9]
        for each in steps:
            for one in each.launches:
                times = [f"{1e6 * t:.1f}" for t in (one.memory, one.cache, one.instructions, one.seconds)]
                cells = [each.shape, each.images, each.window, one.kernel, one.configuration, *times]
                text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def main(outdir: Annotated[Path, typer.Option(help="Where the forecast goes.")] = RESULTS) -> None:
    """Forecast passes for this version of Triton, beside those already in the folder."""
    found = [step(*case) for case in CASES]
    print(f"{len(found)} passes: {head_stage.keep(found, outdir, 'forecast_step', markdown)}")


if __name__ == "__main__":
    typer.run(main)
