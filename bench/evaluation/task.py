"""What an evaluation draws, and who judges it."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench.evaluation.geneval import read_metadata
from bench.mini.judge import check
from bench.mini.pictures import ATTRIBUTES, caption, random_scene
from janus_dola.arguments import MINI

# Scores of a list of images, one list of numbers per score.
Judge = Callable[[Sequence[Image.Image], Sequence[str]], Mapping[str, list[float]]]

ALL_FOUR, CLIP_SCORE = "all four", "CLIP score"
_CAPTION_SEED = 2024
_MINI_AT_ONCE = 128  # images: four times what a real model's step is worth on a CPU, the mini model is so small


@dataclass(frozen=True)
class EvaluationTask:
    """Prompts, a judge, and where the images go.

    Attributes:
        prompts: one after the other; `parallel_size` images are drawn for each.
        judge: scores images against their prompts; None leaves that to other programs.
        judge_name: says what the judge is.
        metadata: what GenEval's scorer wants beside each prompt's images; None keeps no images.
        source: says where the prompts come from, so that an evaluation is not continued with others.
        images_at_once: drawn together; None is as many as fit.
    """

    prompts: list[str]
    judge: Judge | None
    judge_name: str | None
    metadata: list[dict[str, Any]] | None
    source: str
    images_at_once: int | None = None


def check_pictures(images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, list[float]]:
    """Returns 1 where an image is right, 0 where not: each attribute, and all four together, which the captions name."""
    verdicts = [check(image, text) for image, text in zip(images, prompts, strict=True)]
    scores = {name: [float(verdict.right[name]) for verdict in verdicts] for name in ATTRIBUTES}
    return scores | {ALL_FOUR: [float(verdict.all_right) for verdict in verdicts]}


def captions(count: int) -> list[str]:
    """Returns captions that name all four attributes, always the same ones in the same order."""
    rng = random.Random(_CAPTION_SEED)
    return [caption(random_scene(rng)) for _ in range(count)]


def mini_task(prompts: int) -> EvaluationTask:
    """Makes a task of `count` captions for the mini model, judged by its checker."""
    checker = "bench.mini.judge"
    return EvaluationTask(captions(prompts), check_pictures, checker, None, f"captions of {MINI}", _MINI_AT_ONCE)


def geneval_task(
    path: Path, prompts: int | None, judge: Judge | None = None, judge_name: str | None = None
) -> EvaluationTask:
    """Makes a task of the first prompts (None: all) of a file in GenEval's format, with images in GenEval's folders.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, or holds fewer prompts.
    """
    metadata = read_metadata(path)
    if prompts is not None and prompts > len(metadata):
        raise ValueError(f"images must not ask for more prompts than {path} holds, {len(metadata)}; got {prompts}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = metadata[:prompts]
    source = f"{path.name}, sha256 {digest}"
    return EvaluationTask([entry["prompt"] for entry in kept], judge, judge_name, kept, source)
