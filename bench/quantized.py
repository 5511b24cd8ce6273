"""What 8-bit weights do to tokens: the plain and the quantised model side by side, both fed what the plain one drew.

Prints one line for each quantisation: how often both draw the same code and choose the same layer from the same noise, how
far the divergence moves, and how often the checker finds all of the caption in pictures that each draws on its own.
"""

import json
import random
from pathlib import Path
from typing import Annotated

import torch
import typer

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.backbone import visible_length
from janus_dola.engine.decode import Codes, Decoder
from janus_dola.engine.plan import plan
from janus_dola.mini.checker import check
from janus_dola.mini.pictures import caption, random_scene
from janus_dola.models.quantize import QUANTIZATIONS
from janus_dola.prompt import prompt_batch

RESULTS = Path(__file__).parent / "results" / "quantized_mini.json"


@torch.no_grad()
def side_by_side(plain: JanusDoLa, quantised: JanusDoLa, prompts: list[str]) -> tuple[Codes, Codes]:
    """What each draws at every token, given the plain model's earlier tokens."""
    rows = prompt_batch([plain._prompt_ids(prompt) for prompt in prompts], plain._special, plain.parts.device)
    seeds = torch.arange(len(prompts), device=plain.parts.device)
    length = rows.token_ids.shape[1]
    decoders = []
    for pipe in (plain, quantised):
        planned = plan(pipe.parts, DoLaConfig(), 5.0, 1.0, "gumbel", "auto", "eager")
        capacity = visible_length(length + pipe.parts.image_tokens)
        decoders.append(Decoder(pipe.parts, pipe._engine.code_table, planned, len(prompts), capacity))
        decoders[-1].begin(rows, seeds)
    leader, follower = decoders
    for written in range(length + 1, length + plain.parts.image_tokens):
        follower._code.copy_(leader._code)
        for decoder in decoders:
            decoder.step(visible_length(written))
    return leader.codes(len(prompts)), follower.codes(len(prompts))


def all_right(pipe: JanusDoLa, prompts: list[str]) -> float:
    """The share of captions of which the checker finds every attribute."""
    drawn = pipe.stream(prompts)
    return sum(check(found.image, prompts[found.prompt]).all_right for found in drawn) / len(prompts)


def main(
    images: Annotated[int, typer.Option(help="Captions, one image each.")] = 200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure on the mini model and write bench/results/quantized_mini.json."""
    rng = random.Random(1)
    prompts = [caption(random_scene(rng)) for _ in range(images)]
    plain = JanusDoLa.from_pretrained("mini", device=device, dtype="float32")
    found = {"images": images, "device": device, "all_right": all_right(plain, prompts)}
    for how in QUANTIZATIONS:
        quantised = JanusDoLa.from_pretrained("mini", device=device, dtype="float32", quantize=how)
        expected, drawn = side_by_side(plain, quantised, prompts)
        found[how] = {
            "same_codes": (drawn.tokens == expected.tokens).float().mean().item(),
            "same_layers": (drawn.premature_layers == expected.premature_layers).float().mean().item(),
            "jsd_moved_by": (drawn.jsd - expected.jsd).abs().mean().item(),
            "all_right": all_right(quantised, prompts),
        }
        print(how, found[how], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
