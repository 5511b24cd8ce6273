"""Forecasts a whole pass on an H100 with the block kernels, from compiled code alone. Nothing is measured.

    pass = blocks x (six launches, with a microsecond after each) + head stage + small launches

Times of launches are made as in `head_stage.py`: the longest of memory, cache and instructions. Attention moves the keys and
values of all visible positions; as many of its programs run at once on a multiprocessor as have room for their registers.
The floor is `floor.decode_pass` over the same 3.0 TB/s: each weight, key and value read once.
"""

from dataclasses import dataclass

import triton

from bench.forecast import cycles, head_stage, static_report
from bench.forecast.head_stage import AROUND, CACHE, CLOCK, DTYPE, GAP, GPU, MEMORY, MULTIPROCESSORS, Launch
from bench.forecast.static_report import Case
from bench.report.tables import markdown as markdown_table
from bench.speed import floor
from janus_dola.kernels.gpu.attention import CHUNK

VISIBLE = 384  # positions, half way through an image
SMALL = 1.6e-6  # seconds of a small launch, gap included
SMALL_LAUNCHES = 4  # around blocks and head: feed, weigh, stack, accept
REGISTERS = 65536  # of a multiprocessor
CASES = [("1B", 1, 1), ("1B", 4, 1), ("1B", 4, 8), ("7B", 1, 1), ("7B", 4, 1), ("7B", 16, 1)]  # shape, images, window


@dataclass(frozen=True)
class Step:
    """The forecast of a pass; times in seconds."""

    shape: str
    images: int
    window: int
    blocks: int
    launches: list[Launch]  # of a block
    head: float
    floor: float

    @property
    def seconds(self) -> float:
        """Returns the forecast."""
        outside = SMALL_LAUNCHES * SMALL
        return self.blocks * sum(launch.seconds + GAP for launch in self.launches) + self.head + outside


def step(name: str, images: int, window: int) -> Step:
    """Forecasts a pass over images half way drawn, with DoLa and guidance."""
    shape, rows = floor.BLOCKS[name], 2 * images * window
    cases = [case for case in static_report.block_cases(GPU, shape, window) if case.kernel != "weigh"]
    launches = [_launch(case, shape, images, window) for case in cases]
    head = sum(launch.seconds + GAP for launch in head_stage.launches(name, images * window))
    hidden, inner = shape.hidden, shape.inner
    weights = shape.number * (4 * hidden * hidden + 3 * hidden * inner)
    key_values = shape.number * 2 * hidden * VISIBLE
    least = floor.decode_pass(weights, key_values, floor.SHAPES[name], head_stage.LAYERS, images, window, DTYPE)
    assert rows <= 64, "more rows than the products are made for"
    return Step(name, images, window, shape.number, launches, head, least.bytes / MEMORY)


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
        requested = outputs * inputs * of_columns + columns * (inputs * tiles // of_columns + written)
        memory = outputs * inputs * DTYPE.itemsize / MEMORY
        return Launch(shape.name, images, case.kernel, case.what, memory, requested * DTYPE.itemsize / CACHE, took)
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


def markdown(steps: list[Step]) -> str:
    """Returns the forecast as a table."""
    rows = []
    for step in steps:
        blocks = step.seconds - step.head - SMALL_LAUNCHES * SMALL
        times = [f"{1e3 * t:.2f}" for t in (blocks, step.head, step.seconds, step.floor)]
        rows.append([step.shape, step.images, step.window, *times, f"{step.floor / step.seconds:.0%}"])
    columns = ["", "images", "window", "blocks", "head", "pass", "floor", "floor / pass"]
    return f"A pass on an H100, milliseconds, {VISIBLE} positions visible:\n\n{markdown_table(columns, rows)}\n"
