"""Forecasts the head stage on an H100 from compiled kernels alone. Nothing is measured.

The time of a launch is the longest of these, and one microsecond between launches:

    memory        the bytes it must move, over 3.0 TB/s
    cache         the bytes it asks for, from cache or memory, over 5.5 TB/s
    instructions  programs in turn on a multiprocessor x turns of the loop x cycles of a turn, over 1.755 GHz
    latency       a program from its first to its last instruction (small launches), plus 1 us to begin and to end

On top comes what the last program of the projection does when all others are done.

The cycles of a turn are those of a warp alone (`cycles.py`), or of all instructions that the warps of one scheduler issue,
or of the matrix units, whichever is most. What small launches read has just been written, and is in the cache.
"""

import json
from dataclasses import asdict, dataclass

import torch

from bench.forecast import cycles, static_report
from bench.forecast.static_report import Case
from bench.report.tables import markdown as markdown_table
from bench.speed import floor
from janus_dola.kernels.gpu.launch import TABLE, matmul_launch

GPU, MULTIPROCESSORS, CLOCK = "sm_90", 132, 1.755e9
MEMORY, CACHE = 3.0e12, 5.5e12  # bytes per second
OPERATIONS = 4096  # of 16 bits that a multiprocessor's matrix units do in a cycle
GAP, AROUND = 1e-6, 1e-6  # seconds between launches; to begin and end a small one
LAYERS, DTYPE = 5, torch.bfloat16


@dataclass(frozen=True)
class Launch:
    """The forecast of one launch; times in seconds."""

    shape: str
    images: int
    kernel: str
    configuration: str
    memory: float
    cache: float
    instructions: float
    tail: float = 0.0  # what the last program does when all others are done

    @property
    def seconds(self) -> float:
        """Returns the forecast, without the gap to the next launch."""
        return max(self.memory, self.cache, self.instructions) + self.tail


def launches(shape: str, images: int) -> list[Launch]:
    """Forecasts the launches of the stage with 4 candidates and guidance, in order."""
    sizes, table = floor.SHAPES[shape], json.loads(TABLE.read_text(encoding="utf-8"))[GPU]
    pairs = LAYERS * images
    rows = pairs if sizes.width is None else 2 * pairs  # a head of one matrix is one that nothing guides here
    forecasts: list[Launch] = []

    def small(case: Case, programs: int, moved: int, turns: int = 1) -> None:
        code = static_report.machine_code(static_report.compiled(case).asm)
        alone = cycles.warp_cycles(code) + (turns - 1) * sum(map(cycles.warp_cycles, cycles.loops(code)))
        issued = -(-programs // MULTIPROCESSORS) * len(code) * case.num_warps // 4
        took = max(alone, issued) / CLOCK + AROUND
        forecasts.append(Launch(shape, images, case.kernel, case.what, 0.0, moved / CACHE, took))

    def product(kernel: str, columns: int, outputs: int, inputs: int, work: floor.Work, written: int) -> None:
        launch = matmul_launch(kernel, GPU, 16, columns, outputs)
        entry = asdict(launch) | {"bits": 16, "max_columns": columns, "max_outputs": None}
        case = static_report.matmul_case(GPU, kernel, entry)
        code = static_report.machine_code(static_report.compiled(case).asm)
        body = next(loop for loop in cycles.loops(code) if any(each.kind in ("HMMA", "HGMMA") for each in loop))
        blocks = entry["block_outputs"] * entry["block_columns"] * entry["block_inputs"]
        turn = max(cycles.warp_cycles(body), len(body) * case.num_warps // 4, 2 * blocks // OPERATIONS)
        tiles = -(-outputs // entry["block_outputs"]) * -(-columns // entry["block_columns"]) * entry["splits"]
        turns = -(-inputs // (entry["block_inputs"] * entry["splits"]))
        requested = outputs * inputs * -(-columns // entry["block_columns"])
        requested += columns * inputs * -(-outputs // entry["block_outputs"])
        took = -(-tiles // MULTIPROCESSORS) * turns * turn / CLOCK
        requested = requested * DTYPE.itemsize + written
        tail = _tail(code, columns, case) if kernel == "project" else 0.0
        forecasts.append(Launch(shape, images, kernel, case.what, work.bytes / MEMORY, requested / CACHE, took, tail))

    small(
        Case(GPU, "normalise", f"{rows} rows", 16, {"GUIDED": False, "BLOCK_D": sizes.hidden}, 8),
        rows, 2 * rows * sizes.hidden * DTYPE.itemsize,
    )  # fmt: skip
    if sizes.width is not None:
        work = floor.project(sizes, LAYERS, images, DTYPE)
        splits = matmul_launch("project", GPU, 16, rows, sizes.width).splits
        product("project", rows, sizes.width, sizes.hidden, work, 4 * splits * rows * sizes.width)
    work = floor.codebook(sizes, LAYERS, images, DTYPE)
    product("codebook", pairs, sizes.codes, sizes.width or sizes.hidden, work, 4 * pairs * sizes.codes)
    entry = next(entry for entry in table["sweep"] if images <= (entry["max_images"] or images))
    case = static_report.sweep_case(GPU, entry, "4 candidates", LAYERS - 1)
    parts = case.constants["PARTS"]
    turns = -(-sizes.codes // (parts * case.constants["BLOCK_V"]))
    small(case, images * parts, floor.sweep(sizes, LAYERS, images).bytes, turns)
    return forecasts


def _tail(code: list[cycles.Instruction], columns: int, case: Case) -> float:
    """Returns the seconds from where the last program at a tile counts itself to its end."""
    rest = code[next(i for i, each in enumerate(code) if each.kind.startswith("ATOM")) :]
    constants = case.constants
    pairs = min(columns, constants["BLOCK_ROWS"]) // 2
    turns = -(-pairs // constants["PAIRS_AT_ONCE"])
    return (cycles.warp_cycles(rest) + (turns - 1) * sum(map(cycles.warp_cycles, cycles.loops(rest)))) / CLOCK


def markdown(launches: list[Launch]) -> str:
    """Returns the forecast as a table."""
    rows: list[list] = []
    for shape, images in dict.fromkeys((launch.shape, launch.images) for launch in launches):
        own = [launch for launch in launches if (launch.shape, launch.images) == (shape, images)]
        for launch in own:
            times = (launch.memory, launch.cache, launch.instructions, launch.tail, launch.seconds)
            rows.append([shape, images, launch.kernel, launch.configuration, *(f"{1e6 * t:.1f}" for t in times)])
        limit = floor.head_stage(floor.SHAPES[shape], LAYERS, images, DTYPE).bytes / MEMORY
        whole = sum(launch.seconds + GAP for launch in own)
        rows.append(
            [
                shape,
                images,
                "stage",
                f"floor {1e6 * limit:.1f}",
                "",
                "",
                "",
                "",
                f"{1e6 * whole:.1f} = {whole / limit:.2f} x floor",
            ]
        )
    columns = ["", "images", "launch", "configuration", "memory", "cache", "instructions", "tail", "forecast"]
    return (
        f"Head stage on an H100, microseconds, bfloat16, 4 candidates, guidance:\n\n{markdown_table(columns, rows)}\n"
    )
