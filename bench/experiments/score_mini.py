"""Scores what the mini model draws against its captions: baseline and DoLa, same captions and seeds.

Writes bench/results/mini_scores.json and the table in docs/evaluation.md. Captions, checker and measures are those of
`python -m bench.evaluation`, which measures more settings with intervals.
"""

import json
from dataclasses import asdict
from typing import Annotated

import torch
import typer

from bench import RESULTS, ROOT
from bench.evaluation.measure import Sampling, measure
from bench.evaluation.task import ALL_FOUR, mini_task
from bench.mini.pictures import ATTRIBUTES
from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.images.whole_files import write_whole
from janus_dola.settings import DrawSettings

SCORES = RESULTS / "mini_scores.json"
PAGE = ROOT / "docs" / "evaluation.md"
MARKERS = ("<!-- mini scores -->\n", "<!-- end of mini scores -->\n")
METHODS = {"baseline": None, "DoLa": DoLaConfig()}
OTHER_DTYPES = ("float16", "bfloat16")  # on a CPU float16 is packed


def score(pipe: JanusDoLa, images: int, dola: DoLaConfig | None, seed: int) -> dict[str, float]:
    """Returns shares of images in which each attribute is right, and all, and the mean number of distinct codes."""
    sampling = Sampling(DrawSettings(contrast=dola), parallel_size=1, seed=seed)
    values = measure(pipe, mini_task(images), sampling)["values"]
    return {name: sum(values[name]) / images for name in (*ATTRIBUTES, ALL_FOUR, "distinct codes")}


def table(results: dict) -> str:
    """Formats the scores as a Markdown table, with a sentence on what they are."""
    settings, scores = results["settings"], results["scores"]
    lines = [
        f"{settings['images']} captions that name all four attributes, one image each, the same seeds; cfg_weight "
        f"{settings['cfg_weight']:g}, temperature {settings['temperature']:g}; DoLa with alpha "
        f"{settings['dola']['alpha']:g} and the default layers. Made by `make score-mini`:",
        "",
        "| right | " + " | ".join(scores) + " |",
        "|---|" + "---|" * len(scores),
    ]
    for name in next(iter(scores.values())):
        form = "{:.1f}" if name == "distinct codes" else "{:.1%}"
        label = "distinct codes per image, of 64" if name == "distinct codes" else name
        lines.append(f"| {label} | " + " | ".join(form.format(row[name]) for row in scores.values()) + " |")
    right = (
        f"{dtype} " + ", ".join(f"{row[ALL_FOUR]:.1%}" for row in rows.values())
        for dtype, rows in results["of other dtypes"].items()
    )
    lines += ["", f"All four in other dtypes, {' and '.join(scores)}: {'; '.join(right)}."]
    return "\n".join(lines) + "\n"


def main(
    images: Annotated[int, typer.Option(help="Captions, one image each.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
) -> None:
    """Score the mini model."""
    by_dtype = {}
    for dtype in ("float32", *OTHER_DTYPES):
        pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype=dtype)
        by_dtype[dtype] = {name: score(pipe, images, dola, seed) for name, dola in METHODS.items()}
    scores = by_dtype.pop("float32")
    settings = {"images": images, "seed": seed, "cfg_weight": 5.0, "temperature": 1.0, "dola": asdict(DoLaConfig())}
    results = {"settings": settings, "torch": torch.__version__, "scores": scores, "of other dtypes": by_dtype}
    write_whole(SCORES, (json.dumps(results, indent=2) + "\n").encode())
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    write_whole(PAGE, (before + MARKERS[0] + table(results) + MARKERS[1] + after).encode())
    print(table(results))


if __name__ == "__main__":
    typer.run(main)
