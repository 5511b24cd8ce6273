"""Scores what the mini model draws against its captions: baseline and DoLa, same captions and seeds.

Writes bench/results/mini_scores.json and prints the table. The captions name all four attributes and are drawn with a
fixed seed; the checker is `janus_dola.mini.checker`.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.mini.checker import check
from janus_dola.mini.pictures import ATTRIBUTES, caption, random_scene

RESULTS = Path(__file__).parent / "results" / "mini_scores.json"
METHODS = {"baseline": None, "DoLa": DoLaConfig()}
BATCH = 20


def score(pipe: JanusDoLa, captions: list[str], dola: DoLaConfig | None, seed: int) -> dict[str, float]:
    """Shares of images in which each attribute is right, all of them, and the mean number of distinct codes an image has."""
    right = dict.fromkeys((*ATTRIBUTES, "all four"), 0)
    distinct = 0
    for start in tqdm(range(0, len(captions), BATCH), unit="batch"):
        words = captions[start : start + BATCH]
        drawn = pipe.generate(words, dola=dola, cfg_weight=5.0, temperature=1.0, seed=seed + start)
        for text, row, tokens in zip(words, drawn.images, drawn.tokens, strict=True):
            verdict = check(row[0], text)
            for name in ATTRIBUTES:
                right[name] += verdict.right[name]
            right["all four"] += verdict.all_right
            distinct += len(tokens.unique())
    return {name: count / len(captions) for name, count in right.items()} | {"distinct codes": distinct / len(captions)}


def main(
    images: Annotated[int, typer.Option(help="Captions, one image each.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
    model: Annotated[str, typer.Option(help="Model to score.")] = "mini",
    output: Annotated[Path, typer.Option(help="File for the scores.")] = RESULTS,
) -> None:
    """Score the mini model."""
    rng = random.Random(2024)
    captions = [caption(random_scene(rng)) for _ in range(images)]
    pipe = JanusDoLa.from_pretrained(model, device="cpu", dtype="float32")
    scores = {name: score(pipe, captions, dola, seed) for name, dola in METHODS.items()}
    settings = {"images": images, "seed": seed, "cfg_weight": 5.0, "temperature": 1.0, "dola": asdict(DoLaConfig())}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"settings": settings, "torch": torch.__version__, "scores": scores}, indent=2) + "\n")
    print(f"{'':16}" + "".join(f"{method:>10}" for method in scores))
    for name in next(iter(scores.values())):
        cells = [f"{row[name]:10.1f}" if name == "distinct codes" else f"{row[name]:10.1%}" for row in scores.values()]
        print(f"{name:16}" + "".join(cells))


if __name__ == "__main__":
    typer.run(main)
