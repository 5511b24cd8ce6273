"""Draws the images of one cell and keeps what was measured on them.

Letters: P prompts, K images per prompt, T image tokens, L candidate layers.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.evaluation.sharpness import sharpness
from bench.evaluation.task import EvaluationTask
from janus_dola.engine.plan import make_plan
from janus_dola.images.outputs import DrawnImage
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings

_JUDGED_AT_ONCE = 128  # images


@dataclass(frozen=True)
class Sampling:
    """How the images of a cell are drawn; image k of prompt i has the seed `seed + i * parallel_size + k`."""

    settings: DrawSettings
    parallel_size: int
    seed: int


@dataclass
class _Raster:
    """What DoLa did at each position of the raster: how often each layer was chosen, and the sum of its JSD."""

    layers: list[int]
    positions: int
    counts: Tensor = field(init=False)  # [L, T] int64
    jsd: Tensor = field(init=False)  # [L, T] float64, nats

    def __post_init__(self) -> None:
        self.counts = torch.zeros(len(self.layers), self.positions, dtype=torch.int64)
        self.jsd = torch.zeros(len(self.layers), self.positions, dtype=torch.float64)

    def add(self, image: DrawnImage) -> None:
        for slot, layer in enumerate(self.layers):
            chosen = image.premature_layers == layer
            self.counts[slot] += chosen
            self.jsd[slot] += image.jsd.double() * chosen


def measure(
    pipe: JanusDoLa,
    task: EvaluationTask,
    sampling: Sampling,
    keep: Callable[[DrawnImage], None] | None = None,
    progress: Callable[[int], object] = lambda images: None,
) -> dict[str, Any]:
    """Draws `parallel_size` images for each prompt of the task.

    Args:
        keep: is given each image as it is drawn.
        progress: is told of how many images more have been measured.
    Returns:
        what JSON can hold: "values", a list of P or P * K numbers for each measure (see `bench.evaluation.metrics`);
        "raster", for each candidate layer and position how often the layer was chosen ("counts") and the sum of its JSD
        ("jsd", nats); "seconds".
    """
    begin = time.perf_counter()
    plan = make_plan(pipe.image_model, sampling.settings)
    raster = _Raster(list(plan.layers), pipe.image_model.image_tokens)
    values: dict[str, list[float]] = {}
    tokens: list[Tensor] = []
    for images in drawn_together(pipe, task, sampling):
        prompts = [task.prompts[image.prompt] for image in images]
        codes = torch.stack([image.tokens for image in images])
        sharp = sharpness(pipe, prompts, codes, sampling.settings)
        judged = dict(task.judge([image.image for image in images], prompts)) if task.judge else {}
        judged |= {"entropy": sharp.entropy.tolist(), "top probability": sharp.top_probability.tolist()}
        for name, numbers in judged.items():
            values.setdefault(name, []).extend(numbers)
        for image in images:
            raster.add(image)
            if keep is not None:
                keep(image)
        tokens.append(codes)
        progress(len(images))
    values |= diversity(torch.cat(tokens).unflatten(0, (-1, sampling.parallel_size)))
    return {
        "values": {name: [_short(number) for number in numbers] for name, numbers in values.items()},
        "raster": {
            "layers": raster.layers,
            "counts": raster.counts.tolist(),
            "jsd": [[_short(number) for number in row] for row in raster.jsd.tolist()],
        },
        "seconds": round(time.perf_counter() - begin, 1),
    }


def drawn_together(pipe: JanusDoLa, task: EvaluationTask, sampling: Sampling) -> Iterator[list[DrawnImage]]:
    """Yields the images of a cell in order, some at a time."""
    stream = pipe.stream(
        task.prompts,
        sampling.parallel_size,
        sampling.settings,
        seed=sampling.seed,
        max_images=task.images_at_once,
    )
    while together := list(itertools.islice(stream, _JUDGED_AT_ONCE)):
        yield together


def diversity(tokens: Tensor) -> dict[str, list[float]]:
    """Measures how different the images of one prompt are.

    Args:
        tokens: [P, K, T].
    Returns:
        "distinct codes": for each prompt how many different codes its K images hold; where K > 1 also "differing codes": at
        what share of positions two of its images have different codes, over all pairs.
    """
    images = tokens.shape[1]
    values = {"distinct codes": [float(len(of_prompt.unique())) for of_prompt in tokens]}
    if images > 1:
        differing = (tokens[:, :, None] != tokens[:, None]).double().mean(-1).sum((1, 2)) / (images * (images - 1))
        values["differing codes"] = differing.tolist()
    return values


def _short(number: float) -> float:
    return float(f"{number:.6g}")
