"""What 8-bit weights do to tokens: the plain and the quantised model side by side, both fed what the plain one drew.

Prints one line for each quantisation: how often both draw the same code and choose the same layer from the same noise, how
far the divergence moves, and how often the checker finds all of the caption in pictures that each draws on its own.
"""

import json
import random
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from bench import RESULTS
from bench.mini.judge import check
from bench.mini.pictures import caption, random_scene
from janus_dola import JanusDoLa
from janus_dola.images.whole_files import write_whole
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.models.storage import QUANTIZATIONS

FILE = RESULTS / "quantized_mini.json"


class Drawn(NamedTuple):
    """Of codes, one after the other: which was drawn, the layer contrasted with, its divergence."""

    code: Tensor
    layer: Tensor
    jsd: Tensor


def side_by_side(plain: JanusDoLa, quantised: JanusDoLa, prompts: list[str]) -> tuple[Drawn, Drawn]:
    """Returns what each draws at every token of an image for each prompt, given the plain model's earlier tokens.

    Returns:
        of the plain model and of the other; fields are [prompts * T].
    """
    codes = plain.generate(prompts).tokens[:, 0]
    return tuple(_given(codes, pipe, prompts) for pipe in (plain, quantised))


def _given(codes: Tensor, pipe: JanusDoLa, prompts: list[str]) -> Drawn:
    scores = pipe.scores(prompts, codes.unsqueeze(1))
    seeds, position = torch.meshgrid(*map(torch.arange, codes.shape), indexing="ij")
    code = gumbel_max(scores.scores.flatten(0, 2), scores.temperature, seeds.flatten(), position.flatten())
    return Drawn(code, scores.premature_layers.flatten(), scores.jsd.flatten())


def all_right(pipe: JanusDoLa, prompts: list[str]) -> float:
    """Returns the share of captions of which the checker finds every attribute."""
    drawn = pipe.stream(prompts)
    return sum(check(image.image, prompts[image.prompt]).all_right for image in drawn) / len(prompts)


def main(
    images: Annotated[int, typer.Option(help="Captions, one image each.")] = 200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure on the mini model and write bench/results/quantized_mini.json."""
    rng = random.Random(1)
    prompts = [caption(random_scene(rng)) for _ in range(images)]
    plain = JanusDoLa.from_pretrained("mini", device=device, dtype="float32")
    results = {"images": images, "device": device, "all_right": all_right(plain, prompts)}
    for how in QUANTIZATIONS:
        quantised = JanusDoLa.from_pretrained("mini", device=device, dtype="float32", quantize=how)
        expected, drawn = side_by_side(plain, quantised, prompts)
        results[how] = {
            "same_codes": (drawn.code == expected.code).float().mean().item(),
            "same_layers": (drawn.layer == expected.layer).float().mean().item(),
            "jsd_moved_by": (drawn.jsd - expected.jsd).abs().mean().item(),
            "all_right": all_right(quantised, prompts),
        }
        print(how, results[how], flush=True)
    write_whole(FILE, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
