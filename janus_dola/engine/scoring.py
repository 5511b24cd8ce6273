"""The distributions that given codes were drawn from, computed again.

Given the codes, one pass over prompt and image yields the hidden states at all positions at once. From them follows the very
distribution that each code was drawn from, except that another number of rows rounds differently.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from janus_dola.kernels.block_torch import run_whole
from janus_dola.kernels.head import head_scores
from janus_dola.kernels.lens_map import Lens
from janus_dola.kernels.sampling import tempered
from janus_dola.kernels.types import SamplingParams, SamplingTensors, Scores
from janus_dola.models.contexts import undisturbed
from janus_dola.models.eval_copy import in_eval_mode
from janus_dola.models.model import ImageModel, PromptRows
from janus_dola.models.weights import Weights


@dataclass(frozen=True)
class CodeScores:
    """What `JanusDoLa.scores` returns. P prompts, K images of each, T image tokens, V codes; tensors are on the CPU."""

    # [P, K, T, V] float32, F: the contrasted scores before temperature, -inf where a code is not plausible
    scores: Tensor
    # [P, K, T] int64, the layer contrasted with; N (the final one) where there was no contrast
    premature_layers: Tensor
    jsd: Tensor  # [P, K, T] float32, that layer's Jensen-Shannon divergence from the final one, in [0, ln 2] nats
    temperature: float  # T

    @property
    @undisturbed()
    def log_distributions(self) -> Tensor:
        """Returns log softmax(F / T), the distribution that each code was drawn from: [P, K, T, V] float32, nats."""
        return log_distributions(self.scores, self.temperature)

    @classmethod
    def of(
        cls, scores: Iterable[Scores], shape: Sequence[int], layers: Sequence[int], temperature: float
    ) -> "CodeScores":
        """Joins the scores of images [P, K, T]; `layers` are the numbers of the layers read, the final one included."""
        columns = zip(*((each.scores.cpu(), each.layer.cpu(), each.jsd.cpu()) for each in scores), strict=True)
        joined, layer, jsd = (torch.cat(column) for column in columns)
        premature_layers = torch.tensor(layers)[layer].view(*shape)
        return cls(joined.view(*shape, -1).float(), premature_layers, jsd.view(*shape).float(), temperature)


def check_codes(tokens: Tensor, prompts: int, image_model: ImageModel) -> None:
    """Raises ValueError where tokens are not codes [P, K, T] for so many prompts."""
    if tokens.ndim != 3 or tokens.shape[0] != prompts or tokens.shape[2] != image_model.image_tokens:
        raise ValueError(
            f"tokens must be of shape [{prompts}, images, {image_model.image_tokens}], got {list(tokens.shape)}"
        )
    codes = image_model.head.num_codes
    if tokens.dtype != torch.int64 or not ((tokens >= 0) & (tokens < codes)).all():
        raise ValueError(f"tokens must be int64 in 0 .. {codes - 1}, got {tokens.dtype}, up to {tokens.max()}")


def indices_of_layers(
    premature_layers: object, tokens: Tensor, layers: Sequence[int], params: SamplingParams
) -> Tensor:
    """Returns where each code's layer stands among those read, [P, K, T] int64; `layers` are their numbers.

    A ValueError says that they are of another shape or dtype, that one is not read, or that the contrast chooses no layer.
    """
    if "premature" not in params.contrast:
        raise ValueError(f"premature_layers must be None with the contrast {params.method!r}, which takes all layers")
    if not isinstance(premature_layers, Tensor) or premature_layers.shape != tokens.shape:
        given = list(getattr(premature_layers, "shape", ())) or type(premature_layers).__name__
        raise ValueError(f"premature_layers must be a tensor of the tokens' shape, {list(tokens.shape)}, got {given}")
    if premature_layers.dtype != torch.int64:
        raise ValueError(f"premature_layers must be int64, got {premature_layers.dtype}")
    matches = premature_layers.cpu().unsqueeze(-1) == torch.tensor(layers)
    if not (known := matches.any(-1)).all():
        unknown = premature_layers.cpu()[~known].unique().tolist()
        raise ValueError(f"premature_layers must be among {list(layers)} with these settings, got {unknown[:4]}")
    return matches.int().argmax(-1)


def states_at_codes(
    image_model: ImageModel, weights: Weights, rows: Sequence[list[int]], codes: Tensor, layers: Sequence[int]
) -> Tensor:
    """Returns the hidden states that an image's codes [T] are drawn from, given the codes before each.

    `rows` are the token ids of a prompt's rows. [L, R T, D], before the final norm: of `layers`, then the final one;
    row after row.
    """
    embed = in_eval_mode(image_model.embed_text)
    words = [embed(torch.tensor(row, device=image_model.device)) for row in rows]
    fed_back = weights.code_table[image_model.raster.sequence(codes)[:-1]]
    # The shorter row is followed by zeros, which nothing looks back at.
    whole = pad_sequence([torch.cat([row, fed_back]) for row in words], batch_first=True)
    lengths = torch.tensor([len(row) for row in words], device=image_model.device)
    _, states = run_whole(whole, weights.blocks, weights.rotary, layers, lengths)
    return torch.cat([states[:, i, len(row) - 1 + image_model.raster.places] for i, row in enumerate(words)], 1)


def scores_of_images(
    image_model: ImageModel,
    weights: Weights,
    rows: Sequence[PromptRows],
    tokens: Tensor,
    layers: Sequence[int],
    params: SamplingParams,
    premature: Tensor | None = None,
    lens: Lens | None = None,
) -> Iterator[Scores]:
    """Yields for each image in tokens [P, K, T] the contrasted scores at its T codes, given the codes before each.

    The scores are on the model's device. `layers` are read below the final one, in ascending order, through the `lens` if
    there is one. `premature` [P, K, T], from `indices_of_layers`, says which is contrasted with at each code; None leaves
    that to `params`. Run it `undisturbed`.
    """
    device = image_model.device
    for prompt, (both, images) in enumerate(zip(rows, tokens.to(device), strict=True)):
        for image, codes in enumerate(images):
            states = states_at_codes(image_model, weights, both[: params.rows], codes, layers)
            if lens is not None:
                states = lens(states, layers)
            sampling = SamplingTensors.repeat(params, len(codes), states)
            if premature is not None:
                given = premature[prompt, image].to(device)
                sampling = replace(sampling, contrast=sampling.contrast | {"premature": given})
            yield head_scores(states, weights.head, sampling, "torch")


def log_distributions(scores: Tensor, temperature: float) -> Tensor:
    """Returns log softmax(F / T), like the scores F [..., V]; at T = 0 all probability lies on the first highest."""
    if temperature == 0:
        return torch.full_like(scores, -torch.inf).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
    return torch.log_softmax(tempered(scores, temperature)[0], -1)
