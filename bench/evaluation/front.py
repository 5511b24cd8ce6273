"""Right against variety: what temperature, truncation, DoLa and lenses do to pictures, as points that can be compared.

    python -m bench.evaluation.front lenses         # trains them: three seeds for each of two models
    python -m bench.evaluation.front choose         # 288 images a cell, on captions that lenses were trained with
    python -m bench.evaluation.front draw           # 1,008 images a cell, on captions that they never saw

Each goes on where it was stopped; cells that are there are kept. Half of the mini model's 144 scenes are for training lenses
and choosing settings, the other half for the result. The second model is the mini model 3,000 steps before its end.
"""

import itertools
import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from torch import Tensor

from bench import RESULTS, ROOT
from bench.evaluation.features import distance_from_pictures, features
from bench.mini.judge import check
from bench.mini.pictures import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, caption
from janus_dola.arguments import MINI
from janus_dola.contrasts import DoLaConfig
from janus_dola.images.whole_files import write_whole
from janus_dola.kernels import contrast
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings
from janus_dola.training.lens_run import train_lens
from janus_dola.training.lens_training import LensSettings

FOLDER = RESULTS / "front"
WORK = ROOT / "build" / "front"
EARLY, COMMIT = "early", "3ef371b"  # the second model, and where its checkpoint is in this repository's history
LAYERS = (2, 4, 6)
TEMPERATURES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.15)
LENS_SEEDS = (0, 1, 2)
_CHECKPOINT = "janus_dola/mini/checkpoint"
_FILES = (
    "model.safetensors", "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip
_IMAGES_OF_A_CAPTION = {"choose": 4, "draw": 14}
_TOGETHER = 252  # images


@dataclass(frozen=True)
class Cell:
    """One setting for one model. Without a layer it is plain decoding; `lens` is the seed that a lens was trained with."""

    model: str  # "mini" or "early"
    cfg: float
    temperature: float = 1.0
    alpha: float = 0.0
    layer: int | str | None = None  # a layer, "jsd" (the one that diverges most) or "mean" (of all candidates)
    beta: float | None = None
    lens: int | None = None

    @property
    def name(self) -> str:
        """Names the cell by all that is not as in plain decoding."""
        return " ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in self._said()
        )

    def _said(self) -> Iterator[tuple[str, Any]]:
        plain = Cell(self.model, self.cfg)
        for key, value in asdict(self).items():
            if key in ("model", "cfg") or value != getattr(plain, key):
                yield key, value

    @property
    def settings(self) -> DrawSettings:
        """Returns the settings that it is drawn with."""
        if self.layer is None:
            dola = DoLaConfig(alpha=self.alpha, premature_layer="final") if self.alpha else None
            return DrawSettings(self.cfg, self.temperature, dola)
        forced = self.layer if isinstance(self.layer, int) else None
        lens = None if self.lens is None else str(lens_file(self.model, self.lens))
        return DrawSettings(self.cfg, self.temperature, DoLaConfig(LAYERS, self.alpha, forced, self.beta, lens))


def scenes() -> tuple[list[Scene], list[Scene]]:
    """Returns the scenes for lenses and choices, and those for the result: 72 each."""
    every = [Scene(*each) for each in itertools.product(SIZES, COLOURS, SHAPES, BACKGROUNDS)]
    random.Random(7).shuffle(every)
    return every[:72], every[72:]


def lens_file(model: str, seed: int) -> Path:
    """Returns where a lens lies."""
    return (WORK / f"{model}{seed}.safetensors").absolute()


@cache
def load(model: str, dtype: str) -> JanusDoLa:
    """Loads "mini", or "early", which is taken from this repository's history first."""
    if model == MINI:
        return JanusDoLa.from_pretrained(MINI, dtype=dtype)
    folder = WORK / EARLY
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if not (folder / name).exists():
            command = ["git", "show", f"{COMMIT}:{_CHECKPOINT}/{name}"]
            write_whole(folder / name, subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    return JanusDoLa.from_pretrained(folder, dtype=dtype)


def candidates() -> list[Cell]:
    """Lists the cells that settings are chosen by."""
    layers: tuple[int | str, ...] = (*LAYERS, "jsd", "mean")
    lenses = itertools.product((1.0, 3.0), layers, (0.25, 0.5, 1.0), (0.02, 0.1))
    cells = [Cell(MINI, cfg, 1.0, alpha, layer, beta, 0) for cfg, layer, beta, alpha in lenses]
    return [Cell(MINI, cfg, t) for cfg in (1.0, 3.0) for t in TEMPERATURES] + cells


def result() -> list[Cell]:
    """Lists the cells of the result."""
    plain = [Cell("", 0.0, t) for t in TEMPERATURES]
    truncated = [Cell("", 0.0, 1.0, 0.1), Cell("", 0.0, 1.0, 0.02), Cell("", 0.0, 1.0, 0.3), Cell("", 0.0, 0.7, 0.1)]
    paper = [Cell("", 0.0, 1.0, alpha, "jsd") for alpha in (0.1, 0.5)]
    chosen: tuple[tuple[int | str, float, float], ...] = (
        (2, 0.5, 0.1), (2, 0.25, 0.1), ("jsd", 0.5, 0.1), (2, 1.0, 0.1), (2, 0.5, 0.02), (4, 0.5, 0.1),
    )  # fmt: skip
    lenses = [Cell("", 0.0, 1.0, alpha, layer, beta, 0) for layer, beta, alpha in chosen]
    without = [replace(lenses[0], lens=None), replace(lenses[2], lens=None)]
    more = [replace(lenses[0], lens=seed) for seed in LENS_SEEDS[1:]] + [replace(lenses[0], temperature=0.85)]
    some = plain[:5:2] + truncated[:1] + lenses[:2]
    all_ = plain + truncated + paper + lenses + without + more
    places = [
        (MINI, 1.0, all_), (MINI, 5.0, all_), (EARLY, 5.0, all_), (MINI, 2.0, some),
        (MINI, 3.0, some), (MINI, 1.5, some), (EARLY, 1.0, some + paper), (EARLY, 2.0, some),
    ]  # fmt: skip
    return [replace(cell, model=model, cfg=cfg) for model, cfg, cells in places for cell in cells]


def measure(cell: Cell, images: int, captions: Sequence[str], dtype: str) -> dict[str, Any]:
    """Draws a cell's images and measures them.

    Returns:
        "right": per caption, how many of its images have all four attributes right; "differing": per caption, the share of
        codes that differ between two of its images, over all pairs; "distance": see `features`.
    """
    pipe = load(cell.model, dtype)
    right, differing, seen = [], [], []
    with _mean_of_layers() if cell.layer == "mean" else nullcontext():
        for first in range(0, len(captions), max(1, _TOGETHER // images)):
            together = captions[first : first + max(1, _TOGETHER // images)]
            out = pipe.generate(together, images, cell.settings, seed=first * images, window=1)
            for words, pictures, tokens in zip(together, out.images, out.tokens, strict=True):
                right.append(sum(check(picture, words).all_right for picture in pictures))
                differ = (tokens[:, None] != tokens[None]).double().mean(-1).sum()
                differing.append(round(differ.item() / (images * (images - 1)), 4))
                seen.append(features(load(MINI, "float32"), pictures))
    distance = distance_from_pictures(load(MINI, "float32"), captions, torch.cat(seen), WORK)
    return {"right": right, "differing": differing, "distance": float(f"{distance:.4g}")}


@contextmanager
def _mean_of_layers() -> Iterator[None]:
    """Contrasts with the mean of all candidates' distributions, in place of one of them."""

    def mean(logits: Tensor, **numbers: Any) -> contrast.Contrasted:
        mixed = logits[:-1].log_softmax(-1).logsumexp(0) - np.log(len(logits) - 1)
        numbers["premature"] = torch.zeros_like(numbers["premature"])
        return contrast.dola(torch.stack([mixed, logits[-1]]), **numbers)

    contrast.METHODS["dola"] = mean
    try:
        yield
    finally:
        contrast.METHODS["dola"] = contrast.dola


def run(name: Literal["choose", "draw"], cells: Sequence[Cell], dtype: str) -> Iterator[str]:
    """Measures the cells that are not there yet, on the captions of one half of the scenes; yields a line for each."""
    captions = [caption(scene) for scene in scenes()[name == "draw"]]
    images, folder = _IMAGES_OF_A_CAPTION[name], WORK / name
    for number, cell in enumerate(cells, 1):
        file = folder / f"{cell.name}.json"
        if not file.exists():
            values = measure(cell, images, captions, dtype)
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps({"cell": asdict(cell), **values}).encode())
        known = json.loads(file.read_text(encoding="utf-8"))
        right, differing = 100 * sum(known["right"]) / (images * len(captions)), 100 * np.mean(known["differing"])
        said = f"{right:.1f}% right, {differing:.1f}% differ, distance {known['distance']:.3g}"
        yield f"{number}/{len(cells)} {cell.name}: {said}"


def collect(name: Literal["choose", "draw"], dtype: str) -> Path:
    """Gathers all cells that were measured into one file."""
    entries = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((WORK / name).glob("*.json"))]
    about = {"images": _IMAGES_OF_A_CAPTION[name], "dtype": dtype, "torch": torch.__version__}
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    path = FOLDER / ("front.json" if name == "draw" else "choose.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f'{json.dumps(about)[:-1]},\n "cells": [\n{lines}\n]}}\n'.encode())
    return path


def main(
    what: Annotated[Literal["lenses", "choose", "draw"], typer.Argument(help="What to do.")],
    dtype: Annotated[str, typer.Option(help="Of the models that draw.")] = "bfloat16",
) -> None:
    """Train lenses, choose settings, or draw the result."""
    if what == "lenses":
        captions = [caption(scene) for scene in scenes()[0]]
        for seed, model in itertools.product(LENS_SEEDS, (MINI, EARLY)):
            if not lens_file(model, seed).exists():
                settings = LensSettings(seed=seed)
                nats = train_lens(
                    load(model, "float32"), captions, lens_file(model, seed), images=504, settings=settings
                )
                typer.echo(f"{model}, seed {seed}: {nats}")
        return
    for line in run(what, candidates() if what == "choose" else result(), dtype):
        typer.echo(line)
    typer.echo(collect(what, dtype))


if __name__ == "__main__":
    typer.run(main)
