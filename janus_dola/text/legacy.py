"""DoLa as transformers computed it up to version 4.56, kept to compare with: not what the paper defines.

It differs from the paper in that early layers skip the final norm, the arguments of each KL are swapped (so that the
"divergence" has no bound) and averaged over words, and one layer is taken for the whole batch. alpha is 0.1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_ALPHA = math.log(0.1)
_IMPLAUSIBLE_EARLY = -1e-3  # in place of the early layer's log-probability where the final one is cut off


def legacy_scores(final: Tensor, early: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Contrasted scores of a step.

    Args:
        final: [B, V] float32, logits of the model.
        early: [L, B, V], logits of the candidates.
    Returns:
        scores [B, V], -inf off the plausible words; the index into L of the layer taken; its divergence, with swapped KL.
    """
    log_final, log_early = final.log_softmax(-1), early.log_softmax(-1)
    index = divergence = torch.zeros((), dtype=torch.int64, device=final.device)
    if len(early) > 1:
        middle = 0.5 * (final.softmax(-1) + early.softmax(-1))
        swapped = [F.kl_div(log_p, middle, reduction="none").mean(-1) for log_p in (log_final[None], log_early)]
        divergences = (0.5 * (swapped[0] + swapped[1])).mean(-1)
        index = divergences.argmax()
        divergence = divergences[index]
    plausible = log_final >= log_final.amax(-1, keepdim=True) + _LOG_ALPHA
    base = log_early[index].masked_fill(~plausible, _IMPLAUSIBLE_EARLY)
    return log_final.masked_fill(~plausible, -math.inf) - base, index, divergence


def legacy_layers(dola_layers: str | list[int], blocks: int, tied: bool) -> list[int]:
    """The candidates that transformers takes for "low", "high" or a list, with the embeddings (0) where it counts them.

    Raises:
        ValueError: it is none of these, or names no layer below the final one.
    """
    first = 0 if not tied else 2 if blocks > 2 else blocks // 2
    half = blocks // 2 if blocks <= 40 else 20
    if dola_layers == "low":
        return [first] if first == blocks // 2 else list(range(first, half, 2))
    if dola_layers == "high":
        return list(range(blocks // 2 if blocks <= 40 else blocks - 20, blocks, 2))
    if isinstance(dola_layers, str) or not all(isinstance(layer, int) and layer >= 0 for layer in dola_layers):
        raise ValueError(f'dola_layers must be "low", "high" or a list of layers, got {dola_layers!r}')
    kept = [layer for layer in dola_layers if layer < blocks]
    if not kept:
        raise ValueError(f"dola_layers must name a layer below {blocks}, got {dola_layers}")
    return kept
