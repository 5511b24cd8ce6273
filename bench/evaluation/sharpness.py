"""How sharp the distributions were that the codes of images came from.

Plain drawing keeps codes only. Given the codes, one pass over prompt and image reads the hidden states of all positions at
once, and from them follows the very distribution each code was drawn from (up to the rounding of a different batch).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_dola.engine.scoring import log_distributions
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings


@dataclass(frozen=True)
class Sharpness:
    """Means over an image's T codes, [B] float32 each."""

    entropy: Tensor  # of the distribution a code was drawn from, softmax(F / T), nats
    top_probability: Tensor  # of its most probable code


def sharpness(
    pipe: JanusDoLa,
    prompts: Sequence[str],
    tokens: Tensor,
    settings: DrawSettings,
) -> Sharpness:
    """Measures how sharp the distributions were that `tokens` came from.

    Args:
        prompts: one per image.
        tokens: [B, T] int64, drawn with these settings.
    """
    per_image = []
    for prompt, codes in zip(prompts, tokens, strict=True):
        scores = pipe.scores(prompt, codes[None, None], settings)
        per_image.append(of_scores(scores.scores[0, 0], settings.temperature))
    entropy, top = (torch.stack([getattr(each, name) for each in per_image]) for name in ("entropy", "top_probability"))
    return Sharpness(entropy.mean(1), top.mean(1))


def of_scores(scores: Tensor, temperature: float) -> Sharpness:
    """Returns entropy and top probability of softmax(F / T) for F [B, V]; at T = 0 all is on one code."""
    p = log_distributions(scores, temperature).exp()
    return Sharpness(torch.special.entr(p).sum(-1), p.amax(-1))
