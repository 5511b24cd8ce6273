"""Teaches the mini model to say what is on a picture: trains its vision tower and a text head of its own, nothing else.

    python -m bench.train.vision

Whatever draws stays bit for bit: the language model is frozen, and the text head, which was tied to the embeddings, becomes
a matrix of its own. A sequence is a question as `pipe.answer` frames it, then the caption of the picture; the loss is on the
caption. A quarter of the pictures went through the image tokenizer, so that the model knows those it draws itself.

The tower alone first learns to tell sizes, colours, shapes and backgrounds apart: through the frozen language model it finds
colours soon, and shapes hardly.
"""

import random
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig

from bench.mini.pictures import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, SIZES, Scene, caption, draw, random_scene
from bench.train.__main__ import CHECKPOINT
from bench.train.backbone import save
from bench.train.image_tokenizer import encode
from janus_dola import JanusDoLa
from janus_dola.arguments import MINI
from janus_dola.models import adapt
from janus_dola.models.checkpoint.load import load
from janus_dola.models.families.janus_prompts import JanusPrompts
from janus_dola.text.vision_pixels import pixels

CHOICES = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES, "background": tuple(BACKGROUNDS)}
TRAINED = ("model.vision_model.", "model.aligner.", "lm_head.")
SHOWN = 200
QUESTIONS = (
    "what is on it?",
    "What is on it?",
    "What is this?",
    "What do you see?",
    "What does the picture show?",
    "Describe the picture.",
    "describe it",
    "caption",
)


def build(old: JanusForConditionalGeneration) -> JanusForConditionalGeneration:
    """Builds the mini model with a new vision tower, a new aligner and a text head that is not tied."""
    config = JanusConfig.from_pretrained(CHECKPOINT)
    width = config.text_config.hidden_size
    config.vision_config = JanusVisionConfig(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=3, mlp_ratio=2.0, image_size=IMAGE_SIZE, patch_size=8,
        num_image_tokens=64, projection_dim=width,
    )  # fmt: skip
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    model = JanusForConditionalGeneration(config).float()
    kept = {name: weight for name, weight in old.state_dict().items() if not name.startswith(TRAINED)}
    missing, unexpected = model.load_state_dict(kept, strict=False)
    assert not unexpected
    assert all(name.startswith(TRAINED) for name in missing)
    model.generation_config = old.generation_config
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
    return model


@torch.no_grad()
def pictures(
    model: JanusForConditionalGeneration, count: int, rng: random.Random, tokenizer
) -> tuple[list[Scene], Tensor]:
    """Draws scenes and their pixels [count, 3, 64, 64], every fourth chunk as the image tokenizer gives it back."""
    scenes, batches, chunk = [], [], 32
    vq = model.model.vqmodel
    for index in range(count // chunk):
        drawn = [random_scene(rng) for _ in range(chunk)]
        batch = pixels([draw(scene, rng) for scene in drawn], IMAGE_SIZE, tokenizer)
        if index % 4 == 3:
            batch = vq.decode(encode(vq, batch)).clamp(-1, 1)
        scenes += drawn
        batches.append(batch)
    return scenes, torch.cat(batches)


def rate(peak: float, step: int, steps: int) -> float:
    """Returns the learning rate: rises to its peak in 50 steps and falls along a cosine to a hundredth of it."""
    return peak * min(1, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / steps)))


def train_tower(
    tower: nn.Module, scenes: list[Scene], seen: Tensor, steps: int, rng: random.Random, batch_size: int = 32
) -> None:
    """Trains the vision tower to tell all four attributes from the mean of its features, by a head that is thrown away."""
    targets = torch.tensor([[CHOICES[name].index(getattr(scene, name)) for name in CHOICES] for scene in scenes])
    sizes = [len(choices) for choices in CHOICES.values()]
    head = nn.Linear(tower.config.hidden_size, sum(sizes))
    trained = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01)
    started, recent = time.time(), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(2e-3, step, steps)
        chosen = [rng.randrange(len(scenes)) for _ in range(batch_size)]
        logits = head(tower(seen[chosen]).last_hidden_state.mean(1)).split(sizes, -1)
        losses = [F.cross_entropy(z, targets[chosen, i]) for i, z in enumerate(logits)]
        optimizer.zero_grad()
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        recent.append([part.item() for part in losses])
        if (step + 1) % 100 == 0:
            parts = "  ".join(
                f"{name} {part:.4f}" for name, part in zip(CHOICES, np.mean(recent[-100:], 0), strict=True)
            )
            print(f"tower step {step + 1}/{steps}  {parts}  {(time.time() - started) / 60:.1f} min", flush=True)


def right_of(folder: Path) -> int:
    """Counts how many of SHOWN new pictures a checkpoint names right."""
    pipe, rng = JanusDoLa.from_pretrained(folder, device="cpu", dtype="float32"), random.Random(1)
    scenes = [random_scene(rng) for _ in range(SHOWN)]
    return sum(pipe.answer(draw(scene, rng), QUESTIONS[0], dola=None) == caption(scene) for scene in scenes)


def main(
    tower_steps: Annotated[int, typer.Option(help="Steps of the vision tower alone.")] = 1800,
    steps: Annotated[int, typer.Option(help="Steps through the language model.")] = 2000,
    count: Annotated[int, typer.Option(help="Pictures.")] = 4096,
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 16,
    peak_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    target: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = CHECKPOINT,
) -> None:
    """Train it, and write the checkpoint."""
    torch.set_num_threads(1)  # sums of several threads differ in their last bits
    old, tokenizer = load(MINI, "cpu", "float32")
    # Copied, because what is saved may take the place of the file.
    before = {name: weight.clone() for name, weight in load_file(CHECKPOINT / "model.safetensors").items()}
    torch.manual_seed(0)
    rng = random.Random(0)
    model = build(old)
    image_model = adapt(model)
    prompts = JanusPrompts(tokenizer)
    started = time.time()
    scenes, seen = pictures(model, count, rng, tokenizer)
    print(f"{len(scenes)} pictures, {time.time() - started:.0f} s", flush=True)
    questions = [prompts.question_ids(question, 1, image_model.image_tokens) for question in QUESTIONS]
    answers = {text: tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in map(caption, scenes)}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(TRAINED))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    print(f"{sum(weight.numel() for weight in trained) / 1e6:.2f}M trained", flush=True)
    train_tower(model.model.vision_model, scenes, seen, tower_steps, rng)
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01)
    started, losses = time.time(), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(peak_rate, step, steps)
        chosen = [rng.randrange(len(scenes)) for _ in range(batch_size)]
        asking = rng.choice(questions)
        said = [torch.tensor([*answers[caption(scenes[i])], tokenizer.eos_token_id]) for i in chosen]
        targets = torch.nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=-100)
        ids = torch.cat([torch.tensor(asking).expand(batch_size, -1), targets.clamp(min=0)[:, :-1]], 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids, pixel_values=seen[chosen], use_cache=False).last_hidden_state
        logits = F.linear(hidden[:, len(asking) - 1 :].float(), model.lm_head.weight)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            taken = (time.time() - started) / 60
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-25:]):.4f}  {taken:.1f} min", flush=True)
    save(model, tokenizer, target)
    after = load_file(target / "model.safetensors")
    same = [name for name in before if not name.startswith(TRAINED)]
    assert all(torch.equal(before[name], after[name]) for name in same)
    print(f"{len(same)} tensors that draw are as they were", flush=True)
    print(f"{right_of(target)} of {SHOWN} new pictures are named right", flush=True)


if __name__ == "__main__":
    typer.run(main)
