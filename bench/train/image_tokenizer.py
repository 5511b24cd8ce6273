"""Trains the image tokenizer of the mini model: transformers' JanusVQVAE on pictures that Pillow draws.

Three phases, each starting from the last: an autoencoder without codebook on 32 x 32 crops (four times cheaper than whole
pictures), the same with a codebook, then whole pictures. Codes lie on the unit sphere, as in Janus: the codebook starts
from spherical k-means of the autoencoder's latents, then follows them by exponential averages, and a code nobody uses
is moved onto a latent of the batch.
"""

import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from bench.mini.pictures import draw, random_scene

CODES, CODE_DIM, HIDDEN = 512, 8, 192
CROP = 32
# Every GroupNorm of Janus has 32 groups: with 32 channels it would erase the level of each channel, and colours with it.
VQ_CONFIG = JanusVQVAEConfig(
    embed_dim=CODE_DIM, num_embeddings=CODES, latent_channels=64, base_channels=64, channel_multiplier=[1, 1, 1, 1],
    num_res_blocks=1, num_patches=8, projection_dim=HIDDEN, image_token_embed_dim=HIDDEN, num_hidden_layers=2,
)  # fmt: skip


def pictures(count: int, rng: random.Random) -> Tensor:
    """Draws [count, 3, 64, 64] float32 in [-1, 1]."""
    arrays = [np.asarray(draw(random_scene(rng), rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_crops(batch: Tensor, rng: random.Random) -> Tensor:
    """Cuts one 32 x 32 crop from each picture, placed in steps of a code's eight pixels."""
    steps = (batch.shape[-1] - CROP) // 8
    offsets = [(8 * rng.randint(0, steps), 8 * rng.randint(0, steps)) for _ in batch]
    return torch.stack([x[:, i : i + CROP, j : j + CROP] for x, (i, j) in zip(batch, offsets, strict=True)])


def latents(model: JanusVQVAE, batch: Tensor) -> Tensor:
    """Returns [B, 8, h, w] on the unit sphere."""
    return F.normalize(model.quant_conv(model.encoder(batch)).float(), dim=1)


def nearest_codes(model: JanusVQVAE, z: Tensor) -> Tensor:
    """Returns [B, h * w]: the index of the nearest code of each latent."""
    return (z.flatten(2).transpose(1, 2) @ F.normalize(model.quantize.embedding.weight, dim=-1).T).argmax(-1)


@torch.no_grad()
def encode(model: JanusVQVAE, batch: Tensor) -> Tensor:
    """Returns [B, 64] codes of whole pictures."""
    return nearest_codes(model, latents(model, batch))


@torch.no_grad()
def start_codebook(model: JanusVQVAE, rng: random.Random) -> None:
    """Clusters the latents by spherical k-means; plain background, most of every picture, is thinned out first."""
    parts = []
    for _ in range(64):
        batch = pictures(32, rng)
        flat = latents(model, batch).flatten(2).transpose(1, 2).reshape(-1, CODE_DIM)
        patches = F.unfold(batch, 8, stride=8).transpose(1, 2).reshape(len(flat), -1)
        plain = patches.std(-1) < 1e-3
        parts.append(flat[~plain | (torch.rand(len(flat)) < 0.05)])
    points = torch.cat(parts)
    codes = points[torch.randperm(len(points))[:CODES]]
    for _ in range(30):
        assigned = (points @ codes.T).argmax(-1)
        sums = torch.zeros_like(codes).index_add_(0, assigned, points)
        empty = torch.bincount(assigned, minlength=CODES) == 0
        sums[empty] = points[torch.randint(len(points), (int(empty.sum()),))]
        codes = F.normalize(sums, dim=-1)
    model.quantize.embedding.weight.copy_(codes)


class Codebook:
    """The moving averages behind the codes."""

    def __init__(self, model: JanusVQVAE, decay: float = 0.99) -> None:
        self.codes = model.quantize.embedding.weight
        self.decay = decay
        self.counts = torch.ones(CODES)
        self.sums = self.codes.detach().clone()

    @torch.no_grad()
    def follow(self, z: Tensor, assigned: Tensor) -> None:
        flat = z.detach().flatten(2).transpose(1, 2).reshape(-1, CODE_DIM)
        assigned = assigned.flatten()
        self.counts.mul_(self.decay).add_(torch.bincount(assigned, minlength=CODES), alpha=1 - self.decay)
        moved = torch.zeros_like(self.sums).index_add_(0, assigned, flat)
        self.sums.mul_(self.decay).add_(moved, alpha=1 - self.decay)
        dead = self.counts < 0.003
        if dead.any():
            self.sums[dead] = flat[torch.randint(len(flat), (int(dead.sum()),))]
            self.counts[dead] = 0.05
        self.codes.copy_(F.normalize(self.sums, dim=-1))


def near_shape(batch: Tensor) -> Tensor:
    """Marks the shape and three pixels around it, [B, 1, H, W] bool; the pixel in the corner is background."""
    shape = (batch - batch[:, :, :1, :1]).abs().sum(1, keepdim=True) > 0.1
    return F.max_pool2d(shape.float(), 7, stride=1, padding=3) > 0


def train_vq(
    target: Path, steps: tuple[int, int, int], start: Path | None = None, batch_size: int = 8, seed: int = 0
) -> JanusVQVAE:
    """Trains for so many steps per phase and saves the model to `target`; prints the L1 error in [-1, 1] as it goes.

    With `start`, a folder that an earlier run saved, training goes on from there, with its codebook.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = JanusVQVAE(VQ_CONFIG) if start is None else JanusVQVAE.from_pretrained(start)
    model.train()
    model.quantize.embedding.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], betas=(0.9, 0.95), weight_decay=0)
    codebook = None if start is None else Codebook(model)
    started, total, error = time.time(), sum(steps), []
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * (1 - step / total))
        batch = pictures(batch_size, rng)
        if step < steps[0] + steps[1]:
            batch = random_crops(batch, rng)
        if step == steps[0] and codebook is None:
            start_codebook(model, rng)
            codebook = Codebook(model)
        commitment = torch.zeros(())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = latents(model, batch)
            code = z
            if codebook is not None:
                assigned = nearest_codes(model, z)
                code = model.quantize.embedding(assigned).transpose(1, 2).reshape(z.shape)
                commitment = (z - code).square().mean()
                codebook.follow(z, assigned)
                code = z + (code - z).detach()
            drawn = model.decoder(model.post_quant_conv(code)).float()
        # A small shape covers little of its picture: it and its surroundings count as much as the whole.
        near = near_shape(batch)
        weight = 1 + near / near.float().mean((1, 2, 3), keepdim=True).clamp(min=0.02)
        absolute = (drawn - batch).abs()
        loss = (weight * (absolute + absolute.square())).mean() + 0.5 * commitment
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        error.append(absolute.mean().item())
        if (step + 1) % 100 == 0:
            used = 0 if codebook is None else int((codebook.counts > 0.003).sum())
            minutes = (time.time() - started) / 60
            print(
                f"vq step {step + 1}/{total}  L1 {np.mean(error[-100:]):.4f}  codes {used}  {minutes:.1f} min",
                flush=True,
            )
            if (step + 1) % 500 == 0:
                model.save_pretrained(target)
    model.eval()
    model.save_pretrained(target)
    return model
