"""From scores to a code: greedy, Gumbel-max with counter-based noise, or torch.multinomial."""

import torch
from torch import Tensor

from janus_dola.kernels.philox import gumbel_noise


def gumbel_max(scores: Tensor, temperature: float, seeds: Tensor, position: int | Tensor) -> Tensor:
    """A draw from softmax(F / T) as argmax(F / T + G), G from `philox.gumbel_noise`; greedy at T = 0.

    Args:
        scores: [B, V], F; -inf is never drawn.
        temperature: T >= 0.
        seeds: [B] int64.
        position: of the token in its image: [B] int64, or an int for all.
    Returns:
        [B] int64.
    """
    if temperature == 0:
        return scores.argmax(-1)
    return (scores / temperature + gumbel_noise(seeds, position, scores.shape[-1])).argmax(-1)


def multinomial(scores: Tensor, temperature: float, finite: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A draw from softmax(F / T) by torch.multinomial, as in upstream loops; greedy at T = 0.

    Args:
        scores: [B, V].
        temperature: T >= 0.
        finite: [B] bool; an image marked False draws from a uniform distribution, since torch.multinomial would stop the
            whole batch on it.
        generator: None is torch's global one.
    Returns:
        [B] int64.
    """
    if temperature == 0:
        return scores.argmax(-1)
    probabilities = torch.softmax(scores / temperature, -1)
    probabilities = torch.where(finite[:, None], probabilities, 1.0)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
