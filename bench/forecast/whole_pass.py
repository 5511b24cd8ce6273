"""Forecasts a whole pass on an H100 with the block kernels, from compiled code alone. Nothing is measured.

    pass = blocks x (six launches, or GLM's eight, with a microsecond after each) + head stage + small launches

Times of launches are made as in `head_stage.py`: the longest of memory, cache and instructions. A product has a beginning
and an end besides, the instructions around its loop; and its weights come no faster than the loads under way allow.
Attention moves the keys and values of all visible positions; as many of its programs run at once on a multiprocessor as have
room for their registers and shared memory.
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
REGISTERS, SHARED = 65536, 227 * 1024  # of a multiprocessor, the latter in bytes
LATENCY = 0.8e-6  # seconds until a number comes from memory that others read, too
CASES = [
    ("1B", 1, 1), ("1B", 4, 1), ("1B", 1, 16), ("1B", 4, 8), ("1B", 16, 1), ("1B", 16, 8), ("1B", 64, 1),
    ("7B", 1, 1), ("7B", 4, 1), ("7B", 1, 16), ("7B", 4, 8), ("7B", 16, 1), ("7B", 16, 8), ("7B", 64, 1),
    ("GLM-Image", 1, 1), ("GLM-Image", 1, 8), ("GLM-Image", 1, 16), ("GLM-Image", 16, 8),
]  # fmt: skip
"""Shape, images, window."""


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
    """Forecasts a pass over images half way drawn, with DoLa, and guidance where the model has it."""
    shape = floor.BLOCKS[name]
    rows = shape.rows * images * window
    launches = [_launch(case, shape, images, window) for case in static_report.block_cases(GPU, shape, rows, window)]
    head = sum(launch.seconds + GAP for launch in head_stage.launches(name, images * window))
    hidden, inner = shape.hidden, shape.inner
    weights = shape.number * hidden * (2 * hidden + 2 * shape.keys + 3 * inner)
    key_values = shape.number * 2 * shape.keys * VISIBLE
    least = floor.decode_pass(
        weights, key_values, floor.SHAPES[name], head_stage.LAYERS, images, window, DTYPE, rows=shape.rows
    )
    return Step(name, images, window, shape.number, launches, head, least.bytes / MEMORY)


def _launch(case: Case, shape: floor.BlockShape, images: int, window: int) -> Launch:
    compiled = static_report.compiled(case)
    code = static_report.machine_code(compiled.asm)
    registers, _ = static_report.resources(GPU, compiled.asm)
    threads, rows, hidden = 32 * case.num_warps, shape.rows * images, shape.hidden
    resident = min(REGISTERS // (registers * threads), SHARED // (compiled.metadata.shared + 1024))
    if case.kernel in static_report.PRODUCTS:
        outputs, inputs = {
            "qkv": (hidden + 2 * shape.keys, hidden),
            "output": (hidden, hidden),
            "gate and up": (2 * shape.inner, hidden),
            "down": (hidden, shape.inner),
        }[case.what.split(",")[0]]
        columns, constants = rows * window, case.constants
        block_o, block_rows, block_d = (constants[f"BLOCK_{letter}"] for letter in ("O", "ROWS", "D"))
        splits = constants.get("SPLITS", 1)
        of_columns, of_outputs = triton.cdiv(columns, block_rows), triton.cdiv(outputs, block_o)
        programs = of_outputs * of_columns * splits
        body = max(cycles.loops(code), key=len)
        turn = max(
            cycles.warp_cycles(body),
            len(body) * case.num_warps // 4,
            2 * block_o * block_rows * block_d // head_stage.OPERATIONS,
        )
        took = triton.cdiv(programs, MULTIPROCESSORS) * triton.cdiv(inputs, block_d * splits) * turn / CLOCK
        # weights and rows are read by each tile; outputs are written, as parts and again where programs share a tile
        requested = DTYPE.itemsize * (outputs * inputs * of_columns + columns * (inputs * of_outputs + 2 * outputs))
        requested += 2 * 4 * splits * outputs * of_columns * block_rows if splits > 1 else 0
        # no faster than the loads under way allow
        under_way = (
            min(programs, resident * MULTIPROCESSORS) * (case.num_stages - 1) * block_o * block_d * DTYPE.itemsize
        )
        memory = outputs * inputs * DTYPE.itemsize / min(MEMORY, under_way / LATENCY)
        # what stands before the loop and behind it is waited for once
        around = [line for line in code if not body[0].address <= line.address <= body[-1].address]
        ends = cycles.warp_cycles(around) / CLOCK + AROUND
        return Launch(shape.name, images, case.kernel, case.what, memory + ends, requested / CACHE + ends, took + ends)
    if case.kernel == "add_normed":
        issued = triton.cdiv(rows * window, MULTIPROCESSORS) * len(code) * case.num_warps // 4
        took = max(cycles.warp_cycles(code), issued) / CLOCK + AROUND
        moved = 4 * rows * window * hidden * DTYPE.itemsize
        return Launch(shape.name, images, case.kernel, case.what, 0.0, moved / CACHE, took)
    chunks = VISIBLE // CHUNK[2]
    partial = 4 * rows * window * hidden * chunks
    programs, memory = rows * window * shape.heads, 0.0
    if case.kernel == "attention":
        programs = rows * shape.heads // shape.groups * chunks * case.constants["QUERY_BLOCKS"]
        memory = rows * 2 * shape.keys * VISIBLE * DTYPE.itemsize / MEMORY
    issued = triton.cdiv(programs, MULTIPROCESSORS) * len(code) * case.num_warps // 4
    # keys come from memory, which takes longer than the latency that `cycles` counts; programs beside hide it
    waves = triton.cdiv(programs, MULTIPROCESSORS * resident)
    took = max(waves * (cycles.warp_cycles(code) / CLOCK), issued / CLOCK) + LATENCY + AROUND
    return Launch(shape.name, images, case.kernel, case.what, memory + AROUND, partial / CACHE, took)


def markdown(steps: list[Step]) -> str:
    """Returns the forecast as a table."""
    rows = []
    for step in steps:
        blocks = step.seconds - step.head - SMALL_LAUNCHES * SMALL
        times = [f"{1e3 * t:.2f}" for t in (blocks, step.head, step.seconds, step.floor)]
        rows.append([step.shape, step.images, step.window, *times, f"{step.floor / step.seconds:.0%}"])
    columns = ["", "images", "window", "blocks", "head", "pass", "floor", "floor / pass"]
    return f"A pass on an H100, milliseconds, {VISIBLE} positions visible:\n\n{markdown_table(columns, rows)}\n"
