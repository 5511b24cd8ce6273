"""The distributions that the codes of images came from, found again from the codes.

Given the codes, one pass over prompt and image reads the hidden states of all positions at once, and from them follows the
very distribution that each code was drawn from, up to the rounding of another number of rows.
"""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from janus_dola.engine.plan import Plan
from janus_dola.kernels.block import run_whole
from janus_dola.kernels.early_exit import early_exit_scores
from janus_dola.kernels.types import Scores
from janus_dola.models.parts import JanusParts
from janus_dola.models.weights import Weights


@torch.no_grad()
def scores_of_codes(
    parts: JanusParts, weights: Weights, rows: Sequence[tuple[list[int], list[int]]], tokens: Tensor, plan: Plan
) -> Scores:
    """The contrasted distribution at every code of B images, given the codes before it.

    Args:
        rows: token ids of each image's conditional and unconditional row.
        tokens: [B, T] int64.
    Returns:
        Scores of B * T rows, the codes of an image one after the other.
    """
    scores = []
    for both, codes in zip(rows, tokens.to(parts.device), strict=True):
        words = parts.embed_text(torch.tensor(both, device=parts.device))
        fed_back = weights.code_table[codes[:-1]].expand(2, -1, -1)
        _, states = run_whole(torch.cat([words, fed_back], 1), weights.blocks, weights.rotary, plan.layers)
        of_codes = states[:, :, words.shape[1] - 1 :].flatten(1, 2)
        scores.append(early_exit_scores(of_codes, weights.head, plan.decoding, "torch"))
    return Scores(*(torch.cat([getattr(each, field.name) for each in scores]) for field in fields(Scores)))


def log_probabilities(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """log softmax(F / T) of each code; at T = 0 all of it lies on the first of the highest.

    Args:
        scores: [N, V], F; -inf where a code is not plausible.
        codes: [N] int64.
        temperature: T >= 0.
    Returns:
        [N] in the dtype of the scores, -inf for a code that cannot be drawn.
    """
    if temperature == 0:
        return torch.where(scores.argmax(-1) == codes, 0.0, -torch.inf).to(scores.dtype)
    return torch.log_softmax(scores / temperature, -1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
