"""Measures launch parameters of head stage and blocks on the GPU at hand and rewrites its part of kernels/launch_table.json.

    python -m bench.gpu.tune    # `make tune`

For every bucket of 16-bit weights it times twelve block shapes around the present one, in a CUDA graph over weights larger
than the cache, at the sizes of Janus-Pro that fall into the bucket, and keeps the one with the smallest geometric mean of
times. The table is written after each bucket: a run that is cut short loses one.
"""

import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from bench.speed import floor
from bench.speed.cases import number_of_cases, random_cases
from bench.speed.timing import in_graph
from bench.speed.timing import seconds as seconds_of
from janus_dola.images.whole_files import write_whole
from janus_dola.kernels.block_torch import PassStart, Rotary
from janus_dola.kernels.gpu import block_matmul
from janus_dola.kernels.gpu.block_rows import weigh
from janus_dola.kernels.gpu.codebook import codebook
from janus_dola.kernels.gpu.launch import TABLE, MatmulLaunch, SweepLaunch, generation_of
from janus_dola.kernels.gpu.normalise import normalise
from janus_dola.kernels.gpu.project import project
from janus_dola.kernels.gpu.sweep import sweep

LAYERS, BLOCK_IMAGES = 5, 64  # images where an entry for blocks has no limit
POSITIONS = 64
SHAPES = ("1B", "7B")
SWEEPS = [SweepLaunch(*choice) for choice in itertools.product((128, 256, 512), (64, 128), (4, 8))]


def launches(entry: dict) -> list[MatmulLaunch]:
    """Returns what is tried in place of an entry: outputs of a tile, inputs of a turn, turns under way."""
    outputs = sorted({max(16, entry["block_outputs"] // 2), max(32, entry["block_outputs"])})
    choices = itertools.product(outputs, (64, 128), (3, 4, 5))
    splits = entry.get("splits", 1)
    return [MatmulLaunch(o, entry["block_columns"], i, entry["num_warps"], s, splits) for o, i, s in choices]


def columns_of(kernel: str, images: int) -> int:
    """Returns the rows of activations: two per layer and image before guidance, one after it."""
    return LAYERS * images * (2 if kernel == "project" else 1)


def images_of(entry: dict, kernel: str) -> int:
    """Returns how many images fill the largest bucket of columns that the entry is for; 16 where there is no limit."""
    return max(1, (entry["max_columns"] or columns_of(kernel, 16)) // columns_of(kernel, 1))


def entry_of(entries: list[dict], kernel: str, shape: str, images: int) -> dict:
    """Looks up the entry for a shape with this number of images, as `launch.matmul_launch` does."""
    outputs = floor.SHAPES[shape].width if kernel == "project" else floor.SHAPES[shape].codes

    def fits(entry: dict) -> bool:
        columns, limit = entry["max_columns"] or math.inf, entry["max_outputs"] or math.inf
        return entry["bits"] == 16 and columns_of(kernel, images) <= columns and outputs <= limit

    return next(entry for entry in entries if fits(entry))


def seconds_a_call(calls: list) -> float:
    """Returns the median, in a graph."""
    run, count = in_graph(calls)
    return statistics.median(seconds_of(run, "cuda", repeats=10)) / count


def best(choices: list, calls_of, cases_of_shapes: list) -> object:
    """Returns the choice with the smallest geometric mean of its times over the shapes."""
    fastest, shortest = None, math.inf
    for choice in tqdm(choices, leave=False):
        try:
            seconds = [seconds_a_call(calls_of(cases, choice)) for cases in cases_of_shapes]
        except Exception as error:  # whatever keeps one choice from running is no reason to lose the others
            print(f"left out {choice}: {error}", file=sys.stderr)
            continue
        mean = math.exp(sum(map(math.log, seconds)) / len(seconds))
        if mean < shortest:
            fastest, shortest = choice, mean
    return fastest


def prepared(entry_shapes: list[str], images: int, device: str) -> list:
    """Makes cases of each shape, with what the later kernels read, the last of it zeros for their counters."""
    made, arrived = [], torch.zeros(4096, dtype=torch.int32, device=device)
    for name in entry_shapes:
        cases = random_cases(floor.SHAPES[name], LAYERS, images, torch.bfloat16, device)
        normed = [normalise(case.hidden_states, case.head, None, arrived) for case in cases]
        folded = [project(x, c.head, c.sampling.cfg_weight) for x, c in zip(normed, cases, strict=True)]
        logits = [codebook(x, c.head) for x, c in zip(folded, cases, strict=True)]
        made.append([(*each, arrived) for each in zip(cases, normed, folded, logits, strict=True)])
    return made


def project_calls(cases: list, launch: MatmulLaunch) -> list:
    return [lambda c=c, x=x, a=a: project(x, c.head, c.sampling.cfg_weight, a, launch) for c, x, _, _, a in cases]


def codebook_calls(cases: list, launch: MatmulLaunch) -> list:
    return [lambda c=c, x=x: codebook(x, c.head, launch) for c, _, x, _, _ in cases]


def sweep_calls(cases: list, launch: SweepLaunch) -> list:
    return [lambda c=c, z=z, a=a: sweep(*z, c.sampling, c.seeds, c.position, a, launch) for c, _, _, z, a in cases]


def block_entry_of(entries: list[dict], kernel: str, name: str, count: int) -> dict:
    """Looks up the entry for a block's product with `count` rows, as `launch.matmul_launch` does."""
    shape = floor.BLOCKS[name]
    outputs = {"qkv": 3 * shape.hidden, "gate_up": 2 * shape.inner, "added": shape.hidden}[kernel]

    def fits(entry: dict) -> bool:
        return count <= (entry["max_columns"] or math.inf) and outputs <= (entry["max_outputs"] or math.inf)

    return next(filter(fits, entries))


def block_products(kernel: str, name: str, count: int, device: str) -> list[list[Callable]]:
    """Makes calls of a block's product with `count` rows, which lack the tiles; each list has weights beyond the cache."""
    shape = floor.BLOCKS[name]
    hidden, inner = shape.hidden, shape.inner

    def new(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=torch.bfloat16, device=device)

    def several(*sizes: tuple[int, int]) -> list[list[tuple[torch.Tensor, None]]]:
        copies = number_of_cases(torch.bfloat16.itemsize * sum(map(math.prod, sizes)), device)
        return [[(new(*size), None) for size in sizes] for _ in range(copies)]

    rows = weigh(new(count, hidden), new(hidden))
    if kernel == "added":
        of_output_and_down = ((new(count, inputs), several((hidden, inputs))) for inputs in (hidden, inner))
        return [
            [partial(block_matmul.added, rows, x, weight, rows.x[0]) for (weight,) in weights]
            for x, weights in of_output_and_down
        ]
    if kernel == "gate_up":
        return [[partial(block_matmul.gated, rows, 1e-6, each) for each in several((inner, hidden), (inner, hidden))]]
    angles = new(POSITIONS, shape.head_size)
    place = PassStart(torch.zeros(count, dtype=torch.int64, device=device), Rotary(angles, angles), POSITIONS)
    buffer = new(count, POSITIONS, 2, shape.heads, shape.head_size)
    weights = several(*[(hidden, hidden)] * 3)
    return [[partial(block_matmul.projected, rows, 1e-6, each, buffer, place) for each in weights]]


def block_calls(calls: list[Callable], launch: MatmulLaunch) -> list:
    return [partial(call, launch=launch) for call in calls]


def dump(table: dict) -> str:
    """Returns the table as JSON with one entry per line."""

    def rows(entries: list[dict]) -> str:
        return "[\n" + ",\n".join("      " + json.dumps(entry) for entry in entries) + "\n    ]"

    parts = [
        f'  "{name}": {{\n' + ",\n".join(f'    "{kernel}": {rows(kernels[kernel])}' for kernel in kernels) + "\n  }"
        for name, kernels in table.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(table: dict, dry_run: bool) -> None:
    """Writes the table into the package and to the folder $OUT, which outlives a borrowed machine."""
    paths = ([] if dry_run else [TABLE]) + ([Path(os.environ["OUT"]) / TABLE.name] if "OUT" in os.environ else [])
    for path in paths:
        write_whole(path, dump(table).encode())


def main(
    dry_run: Annotated[bool, typer.Option(help="Print the result, and leave the table as it is.")] = False,
) -> None:
    """Tune the fused kernels for this GPU."""
    if not torch.cuda.is_available():
        print("tune: torch sees no GPU here", file=sys.stderr)
        raise typer.Exit(1)
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    tune(table, generation_of(torch.device("cuda")), "cuda", partial(write, table, dry_run))


def tune(table: dict, generation: str, device: str, write: Callable[[], None]) -> None:
    """Measures anew what the table says of 16-bit weights on a generation, and writes after each entry."""
    for kernel, calls_of in (("project", project_calls), ("codebook", codebook_calls)):
        for entry in table[generation][kernel]:
            if entry["bits"] != 16:
                continue
            images = images_of(entry, kernel)
            names = [name for name in SHAPES if entry_of(table[generation][kernel], kernel, name, images) is entry]
            if not names:  # no shape falls into it
                continue
            fastest = best(launches(entry), calls_of, prepared(names, images, device))
            if fastest is not None:
                entry |= {name: value for name, value in asdict(fastest).items() if name in entry}
            print(kernel, entry, flush=True)
            write()
    for kernel in ("qkv", "gate_up", "added"):
        entries = [entry for entry in table[generation][kernel] if entry["bits"] == 16]
        for entry in entries:
            count = entry["max_columns"] or 2 * BLOCK_IMAGES
            names = [name for name in SHAPES if block_entry_of(entries, kernel, name, count) is entry]
            if not names:
                continue
            products = [calls for name in names for calls in block_products(kernel, name, count, device)]
            fastest = best(launches(entry), block_calls, products)
            if fastest is not None:
                entry |= {name: value for name, value in asdict(fastest).items() if name in entry}
            print(kernel, entry, flush=True)
            write()
    for entry in table[generation]["sweep"]:
        fastest = best(SWEEPS, sweep_calls, prepared(["7B"], entry["max_images"] or 16, device))
        if fastest is not None:
            entry |= asdict(fastest)
        print("sweep", entry)
        write()


if __name__ == "__main__":
    typer.run(main)
