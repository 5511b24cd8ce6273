"""The distributions that the codes of images came from, found again from the codes.

Given the codes, one pass over prompt and image reads the hidden states of all positions at once, and from them follows the
very distribution that each code was drawn from, up to the rounding of another number of rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from janus_dola.engine.plan import Plan
from janus_dola.kernels.block_torch import run_whole
from janus_dola.kernels.head import head_scores
from janus_dola.kernels.types import Scores
from janus_dola.models.model import ImageModel, PromptRows
from janus_dola.models.weights import Weights


@dataclass(frozen=True)
class CodeScores:
    """What `JanusDoLa.scores` returns. P prompts, K images of each, T image tokens, V codes; tensors are on the CPU."""

    scores: (
        Tensor  # [P, K, T, V] float32, F: the contrasted scores before temperature, -inf where a code is not plausible
    )
    premature_layers: (
        Tensor  # [P, K, T] int64, the layer contrasted with; N (the final one) where there was no contrast
    )
    jsd: Tensor  # [P, K, T] float32, that layer's Jensen-Shannon divergence from the final one, in [0, ln 2] nats
    temperature: float  # T of the settings

    @property
    def log_distributions(self) -> Tensor:
        """[P, K, T, V] float32, log softmax(F / T): what each code was drawn from, nats."""
        return log_distributions(self.scores, self.temperature)

    @classmethod
    def of(cls, found: Iterable[Scores], shape: Sequence[int], plan: Plan, num_layers: int) -> "CodeScores":
        """From the scores of images [P, K, T], one after the other, in a model of so many blocks."""
        columns = zip(*((each.scores.cpu(), each.layer.cpu(), each.jsd.cpu()) for each in found), strict=True)
        scores, layer, jsd = (torch.cat(column) for column in columns)
        layers = torch.tensor([*plan.layers, num_layers])
        return cls(
            scores.view(*shape, -1).float(),
            layers[layer].view(*shape),
            jsd.view(*shape).float(),
            plan.params.temperature,
        )


def check_codes(tokens: Tensor, prompts: int, image_model: ImageModel) -> None:
    """Raises ValueError where tokens are not codes [P, K, T] of images of so many prompts."""
    if tokens.ndim != 3 or tokens.shape[0] != prompts or tokens.shape[2] != image_model.image_tokens:
        raise ValueError(
            f"tokens must be of shape [{prompts}, images, {image_model.image_tokens}], got {list(tokens.shape)}"
        )
    codes = image_model.head.num_codes
    if tokens.dtype != torch.int64 or not ((tokens >= 0) & (tokens < codes)).all():
        raise ValueError(f"tokens must be int64 in 0 .. {codes - 1}, got {tokens.dtype}, up to {tokens.max()}")


@torch.no_grad()
def scores_of_images(
    image_model: ImageModel, weights: Weights, rows: Sequence[PromptRows], tokens: Tensor, plan: Plan
) -> Iterator[Scores]:
    """The contrasted distribution at every code of each image, given the codes before it; one image at a time.

    Args:
        rows: of P prompts.
        tokens: [P, K, T] int64.
    Returns:
        for each image Scores of T rows, on the model's device.
    """
    for both, images in zip(rows, tokens.to(image_model.device), strict=True):
        words = [image_model.embed_text(torch.tensor(row, device=image_model.device)) for row in both]
        for codes in images:
            fed_back = weights.code_table[image_model.raster.sequence(codes)[:-1]]
            # The shorter row is followed by zeros, which nothing looks back at.
            whole = pad_sequence([torch.cat([row, fed_back]) for row in words], batch_first=True)
            _, states = run_whole(whole, weights.blocks, weights.rotary, plan.layers)
            of_codes = torch.cat(
                [states[:, i, len(row) - 1 + image_model.raster.places] for i, row in enumerate(words)], 1
            )
            yield head_scores(of_codes, weights.head, plan.params, "torch")


def log_distributions(scores: Tensor, temperature: float) -> Tensor:
    """log softmax(F / T); at T = 0 all of it lies on the first of the highest.

    Args:
        scores: [..., V], F; -inf where a code is not plausible.
        temperature: T >= 0.
    Returns:
        [..., V] in the dtype of the scores, -inf for a code that cannot be drawn.
    """
    if temperature == 0:
        return torch.full_like(scores, -torch.inf).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
    return torch.log_softmax(scores / temperature, -1)


def log_probabilities(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """`log_distributions` at codes [N], of scores [N, V]: [N]."""
    return log_distributions(scores, temperature).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
