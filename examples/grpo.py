"""Teaches the mini model to draw what the words say, by GRPO (Shao et al., 2024, arXiv 2402.03300), in minutes on a CPU:

    python -m examples.grpo --seeds 0

Each step draws 8 images for each of 8 captions with the engine, lets a checker of colours and shapes look at them, and
takes two updates by the clipped loss. Drawing reads the weights where they lie, so that the policy is never stale. Nothing
guides (cfg_weight 1): what is drawn from is the model's own distribution, and what is trained, too.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from PIL import Image

from bench.mini.judge import check
from bench.mini.pictures import caption, random_scene
from janus_dola import JanusDoLa
from janus_dola.settings import DrawSettings

SETTINGS = DrawSettings(cfg_weight=1, contrast=None)
UPDATES = 2  # per step
CLIP, LEARNING_RATE, LARGEST_GRADIENT = 0.2, 2e-4, 1.0


def captions(count: int, seed: int) -> list[str]:
    """Draws captions that name all four attributes."""
    rng = random.Random(seed)
    return [caption(random_scene(rng)) for _ in range(count)]


def judge(words: list[str], images: list[list[Image.Image]]) -> tuple[torch.Tensor, float]:
    """Returns each image's share of right attributes, [P, K], and the share of images where all are right."""
    verdicts = [
        [list(check(image, text).right.values()) for image in row] for text, row in zip(words, images, strict=True)
    ]
    right = torch.tensor(verdicts).double()
    return right.mean(-1), right.amin(-1).mean().item()


def share_right(pipe: JanusDoLa, images: int) -> float:
    """Returns the share of right images; captions and seeds are always the same, and not those of training."""
    words = captions(images, seed=-1)
    return judge(words, pipe.generate(words, 1, SETTINGS, seed=10**9).images)[1]


def train(
    seed: int, steps: int = 40, words: int = 8, images: int = 8, evaluated: int = 288, dtype: str = "float32"
) -> dict:
    """Trains the blocks and the image head, and returns what happened in each step."""
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype=dtype)
    model, begin = pipe.image_model, time.perf_counter()
    weights = [weight for module in (model.backbone, *model.image_head) for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=0.0)
    record: dict = {"seed": seed, "dtype": dtype, "right": {0: share_right(pipe, evaluated)}, "steps": []}
    for step in range(1, steps + 1):
        first_seed = (seed * 10**4 + step) * words * images
        prompts = captions(words, first_seed)
        out = pipe.generate(prompts, images, SETTINGS, seed=first_seed)
        reward, right = judge(prompts, out.images)
        advantage = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)).unsqueeze(-1)
        for update in range(UPDATES):
            policy = pipe.policy(prompts, out.tokens, SETTINGS)
            ratio = (policy.log_probs - out.log_probs).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
            optimizer.step()
            if update == 0:
                change = (policy.log_probs - out.log_probs).abs().max().item()
                of_step = {"right": right, "ratio": ratio.mean().item(), "largest |delta log p|": change}
                record["steps"].append(of_step | {"entropy": policy.entropy.mean().item()})
        print(step, record["steps"][-1], flush=True)
    record["right"][steps] = share_right(pipe, evaluated)
    print(record["right"], flush=True)
    return record | {"seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    records = []
    for seed in given.seeds:
        records.append(train(seed, given.steps))
        if given.out:
            given.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
