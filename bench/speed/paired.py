"""Images per second on a CPU: our engine beside transformers' own `generate` and the plain DoLa loop, round by round.

Each round draws the same number of images by every contender, one after the other, so that what else the machine does falls
on all of them. A ratio is the median over rounds of theirs over ours in the same round. Theirs is in the dtype where it is
fastest, its weights as transformers loads them. Writes a record and prints the table that stands in bench/README.md.
"""

import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import torch
import typer

from bench import RESULTS
from bench.report.tables import markdown
from bench.speed import models, peers
from bench.speed.conftest import made_with
from janus_dola import JanusDoLa
from janus_dola.images.whole_files import write_whole
from janus_dola.models.packed_linear import unpack

FILE = RESULTS / "paired_cpu.json"
PROMPT = "a large red circle on white"
DTYPES = ("float32", "float16", "bfloat16")


def contenders(name: str, images: int, dtypes: Sequence[str] = DTYPES) -> dict[str, Callable[[], object]]:
    """Returns what is timed, by a name that says dtype and, for ours, the window."""
    calls: dict[str, Callable[[], object]] = {}
    dola = models.DOLA["DoLa"]
    for dtype in dtypes:
        pipe = models.load(name, "cpu", dtype)
        for window in (1, "auto"):
            calls[f"ours, {dtype}, window {window}"] = _ours(pipe, images, dola, window)
        if dtype != "float16":  # packed weights are ours; torch's own float16 is far slower
            plain = models.load(name, "cpu", dtype)
            unpack(plain.model)
            calls[f"transformers, {dtype}"] = _theirs(plain, lambda p: peers.transformers_generate(p, PROMPT, images))
            calls[f"plain loop, {dtype}"] = _theirs(plain, lambda p: peers.seed_loop(p, PROMPT, images, dola))
    return calls


def _ours(pipe: JanusDoLa, images: int, dola, window) -> Callable[[], object]:
    return lambda: pipe.generate(PROMPT, images, dola=dola, window=window)


def _theirs(pipe: JanusDoLa, draw: Callable[[JanusDoLa], torch.Tensor]) -> Callable[[], object]:
    return lambda: peers.decode_pixels(pipe, draw(pipe))


def measure(name: str, images: int, rounds: int, dtypes: Sequence[str] = DTYPES) -> dict[str, list[float]]:
    """Returns the seconds of each contender in each round, after one round that does not count."""
    draw = contenders(name, images, dtypes)
    seconds: dict[str, list[float]] = {each: [] for each in draw}
    for turn in range(rounds + 1):
        for each, call in draw.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[each].append(time.perf_counter() - start)
    return seconds


def rows(name: str, images: int, seconds: dict[str, list[float]]) -> list[list]:
    """Compares ours in each dtype, with its better window, with the fastest of each kind of theirs."""
    fastest = {
        kind: min((each for each in seconds if each.startswith(kind)), key=lambda each: median(seconds[each]))
        for kind in ("transformers", "plain loop")
    }
    table = []
    for dtype in DTYPES:
        windows = [each for each in seconds if each.startswith(f"ours, {dtype}")]
        if not windows:
            continue
        ours = min(windows, key=lambda each: median(seconds[each]))
        ratios = []
        for theirs in fastest.values():
            shares = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
            low, _, high = quantiles(shares, n=4)
            ratios.append(f"{median(shares):.2f} x ({low:.2f} - {high:.2f})")
        table.append([name, images, ours.removeprefix("ours, "), f"{images / median(seconds[ours]):.3g}", *ratios])
    table.append([name, images, "theirs: " + "; ".join(fastest.values()), "", "", ""])
    return table


def main(
    rounds: Annotated[int, typer.Option(help="Rounds that count.")] = 7,
    model: Annotated[list[str], typer.Option(help="Models to draw with.")] = ("mini", models.FEW_BLOCKS),
    images: Annotated[list[int], typer.Option(help="Images at once.")] = (1, 4),
    dtype: Annotated[list[str], typer.Option(help="Dtypes of ours and theirs.")] = DTYPES,
    file: Annotated[Path, typer.Option("--record", help="The machine's record.")] = FILE,
) -> None:
    """Measure, put the seconds in the record in place of those of the same cases, print the table."""
    warnings.filterwarnings("error", "launch")  # a launch that fell back would be another contender
    made, table = made_with("cpu"), []
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"made_with": made, "seconds": {}}
    if record["made_with"]["device"] != made["device"]:
        raise typer.BadParameter(f"{file} holds times of {record['made_with']['device']}, this is {made['device']}")
    for name in model:
        for number in images:
            seconds = measure(name, number, rounds, dtype)
            record = {"made_with": made, "seconds": record["seconds"] | {f"{name}, {number} images": seconds}}
            write_whole(file, (json.dumps(record, indent=1) + "\n").encode())
            table += rows(name, number, seconds)
    columns = [
        "model",
        "images",
        "ours with DoLa",
        "images per second",
        "transformers without DoLa over ours",
        "plain DoLa loop over ours",
    ]
    typer.echo(f"{made['device']}, torch {made['torch']}, transformers {made['transformers']}, {rounds} rounds\n")
    typer.echo(markdown(columns, table))


if __name__ == "__main__":
    typer.run(main)
