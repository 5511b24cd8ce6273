"""How sharp the distributions were that the codes of images came from.

Plain drawing keeps codes only. Given the codes, one pass over prompt and image reads the hidden states of all positions at
once, and from them follows the very distribution each code was drawn from (up to the rounding of a different batch).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_dola.engine.plan import Plan
from janus_dola.pipeline import JanusDoLa

_LOGITS_AT_ONCE = 1 << 26  # 256 MB of float32


@dataclass(frozen=True)
class Sharpness:
    """Means over an image's T codes, [B] float32 each."""

    entropy: Tensor  # of the distribution a code was drawn from, softmax(F / T), nats
    top_probability: Tensor  # of its most probable code


def sharpness(pipe: JanusDoLa, prompts: Sequence[str], tokens: Tensor, plan: Plan) -> Sharpness:
    """How sharp the distributions were that `tokens` came from.

    Args:
        prompts: one per image.
        tokens: [B, T] int64, drawn by `plan`.
    """
    layers, positions = len(plan.layers) + 1, pipe.parts.image_tokens
    images = max(1, _LOGITS_AT_ONCE // (layers * positions * pipe.parts.head.num_codes))
    entropy, top = [], []
    for start in range(0, len(tokens), images):
        part = slice(start, start + images)
        found = pipe.scores_by(plan, prompts[part], tokens[part])
        each = of_scores(found.scores, plan.decoding.temperature)
        entropy.append(each.entropy.unflatten(0, (-1, positions)).mean(1).cpu())
        top.append(each.top_probability.unflatten(0, (-1, positions)).mean(1).cpu())
    return Sharpness(torch.cat(entropy), torch.cat(top))


def of_scores(scores: Tensor, temperature: float) -> Sharpness:
    """Entropy and top probability of softmax(F / T) for F [B, V]; all on one code at T = 0."""
    if temperature == 0:
        certain = scores.new_ones(len(scores))
        return Sharpness(certain - 1, certain)
    log_p = torch.log_softmax(scores / temperature, -1)
    return Sharpness(torch.special.entr(log_p.exp()).sum(-1), log_p.amax(-1).exp())
