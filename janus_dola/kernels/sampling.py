"""From scores to a code: greedy, Gumbel-max with counter-based noise, or torch.multinomial."""

import torch
from torch import Tensor

from janus_dola.kernels.contrast import SMALLEST_LOG
from janus_dola.kernels.philox import HIGHEST_NOISE, LOWEST_NOISE, gumbel_noise


def tempered(scores: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Returns (F - max F) / T, whose rounding does not grow with F, and which images [..., 1] are greedy: T is 1 there.

    Args:
        scores: [..., V], F; -inf is never drawn.
        temperature: T >= 0, [...] or a number for all.
    """
    if not isinstance(temperature, Tensor):
        temperature = torch.full_like(scores[..., 0], temperature)
    greedy = (temperature == 0).unsqueeze(-1)
    return (scores - scores.amax(-1, keepdim=True)) / temperature.unsqueeze(-1).masked_fill(greedy, 1.0), greedy


def gumbel_max(scores: Tensor, temperature: float | Tensor, seeds: Tensor, position: int | Tensor) -> Tensor:
    """Draws codes [B] int64 from softmax(F / T) as argmax((F - max F) / T + G); greedy at T = 0. G: `philox.gumbel_noise`.

    Args:
        scores, temperature: as for `tempered`.
        seeds, position: as for `philox.gumbel_noise`.
    """
    logits, greedy = tempered(scores, temperature)
    needed = logits > LOWEST_NOISE - HIGHEST_NOISE  # the others are behind the best one whatever the noise
    noise = gumbel_noise(seeds, position, scores.shape[-1], needed).masked_fill(greedy, 0.0)
    return (logits + noise).argmax(-1)


def log_probabilities(scores: Tensor, temperature: float | Tensor, codes: Tensor) -> Tensor:
    """Returns log softmax(F / T) of codes [...] in nats; at T = 0 it is 0 for the first of the highest scores, else -inf.

    Args:
        scores, temperature: as for `tempered`.
    """
    logits, greedy = tempered(scores, temperature)
    at_codes = logits.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    # In place, since new memory is what takes time on a CPU.
    log_p = at_codes - logits.clamp_(min=SMALLEST_LOG).exp_().sum(-1).log_()
    certain = torch.zeros_like(log_p).masked_fill(scores.argmax(-1) != codes, -torch.inf)
    return torch.where(greedy.squeeze(-1), certain, log_p)


def multinomial(
    scores: Tensor, temperature: float | Tensor, finite: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draws codes [B] int64 from softmax(F / T) by torch.multinomial, as in upstream loops; greedy at T = 0.

    Args:
        scores, temperature: as for `tempered`.
        finite: [B] bool; an image marked False draws from a uniform distribution, since torch.multinomial would stop the
            whole batch on it.
        generator: None is torch's global one.
    """
    logits, greedy = tempered(scores, temperature)
    probabilities = torch.where(finite[:, None], torch.softmax(logits, -1), 1.0)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return torch.where(greedy, scores.argmax(-1, keepdim=True), drawn).squeeze(-1)
