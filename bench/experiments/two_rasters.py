"""Measures how many codes a pass decides where an image is drawn small first: the table in bench/findings.md.

    OMP_NUM_THREADS=1 python -m bench.experiments.two_rasters

No small model of this kind is published. So one of GLM-Image's class is trained on the mini model's pictures, encoded by its
image tokenizer: 4 x 4 codes of a picture, then its 8 x 8. It is gone when the command ends.
"""

import math
import random
from typing import Annotated
from unittest import mock

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GlmImageForConditionalGeneration

from bench.mini.pictures import IMAGE_SIZE, Scene, random_caption
from bench.train.backbone import codes_of_pictures
from janus_dola import JanusDoLa
from janus_dola.models.checkpoint.load import load
from janus_dola.models.families import glm_image
from tests.janus_dola import glm_image as tiny

CODES, SMALL, SIDE = 512, 4, 8  # of the image tokenizer; codes per side
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 12}
PICTURES, BATCH_SIZE, STEPS, PEAK_RATE = 6144, 16, 550, 1.5e-3
SETTINGS = ({"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.75}, {"temperature": 0.5})
PROMPTS = ("a large red circle on white", "a small blue square on black", "a green triangle on yellow")


def new_pipe() -> JanusDoLa:
    """Builds an untrained model."""
    words = tiny.tokenizer(CODES)
    pixels = SIDE * 32  # as GLM-Image counts them
    return JanusDoLa(GlmImageForConditionalGeneration(tiny.config(words, pixels, pixels, **SIZES)), words)


def train(pipe: JanusDoLa, scenes: list[Scene], codes: Tensor, steps: int, rng: random.Random) -> None:
    """Trains on captions and their pictures' codes, [n, 80]."""
    model, image_model = pipe.model, pipe.image_model
    trained = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), weight_decay=0.02)
    recent = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = PEAK_RATE * min(1, (step + 1) / 50) * falling
        chosen = [rng.randrange(len(codes)) for _ in range(BATCH_SIZE)]
        rows = [pipe.prompts.ids(random_caption(scenes[i], rng)) for i in chosen]
        words = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side="left")
        counted = torch.stack([torch.arange(words.shape[1]) - words.shape[1] + len(row) for row in rows])
        targets = codes[chosen]
        drawn, places = targets[:, :-1], image_model.positions[:, None, :-1]
        lengths = torch.tensor([len(row) for row in rows]).view(1, -1, 1)
        positions = torch.cat([counted.clamp(min=0).expand(3, -1, -1), places + lengths], 2)
        attended = torch.cat([counted >= 0, torch.ones_like(drawn, dtype=torch.bool)], 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden_states = model.model.language_model(
                input_ids=torch.cat([words, drawn], 1), position_ids=positions, attention_mask=attended.long(),
                use_cache=False,
            ).last_hidden_state[:, words.shape[1] - 1 :]  # fmt: skip
            logits = model.lm_head(hidden_states)[..., :CODES].float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        recent = 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"{step + 1} steps: loss {recent / (1 - 0.98 ** (step + 1)):.3f} nats", flush=True)


def main(
    steps: Annotated[int, typer.Option(help="Steps of training: about seven minutes of processor time.")] = STEPS,
    pictures: Annotated[int, typer.Option(help="Pictures to train on.")] = PICTURES,
    images: Annotated[int, typer.Option(help="Images per prompt to measure on.")] = 4,
) -> None:
    """Train a model with two rasters, and count the codes that its passes decide."""
    torch.manual_seed(0)
    rng = random.Random(1)
    image_tokenizer = load("mini", "cpu", "float32")[0].model.vqmodel
    scenes, codes = codes_of_pictures(image_tokenizer, pictures, rng, (IMAGE_SIZE // 2, IMAGE_SIZE))
    small, large = codes[:, : SMALL**2].view(-1, SMALL, SMALL), codes[:, SMALL**2 :].view(-1, SIDE, SIDE)
    in_small = (small.repeat_interleave(2, 1).repeat_interleave(2, 2) == large).float().mean()
    above = (large[:, 1:] == large[:, :-1]).float().mean()
    print(f"{len(codes)} pictures: a code in full is the small image's in {in_small:.1%}, the one above in {above:.1%}")
    with mock.patch.object(glm_image, "_SMALL", SMALL):
        pipe = new_pipe()
        print(f"{sum(each.numel() for each in pipe.model.parameters()) / 1e6:.1f}M numbers", flush=True)
        train(pipe, scenes, codes, steps, rng)
        pipe.model.eval()
        for settings in SETTINGS:
            for window in (8, 16):
                out = pipe.generate(PROMPTS, images, contrast=None, window=window, seed=11, **settings)
                passes = out.passes.float().mean().item()
                print(f"{settings}, window {window}: {(codes.shape[1] - 1) / passes:.2f} codes a pass", flush=True)


if __name__ == "__main__":
    typer.run(main)
