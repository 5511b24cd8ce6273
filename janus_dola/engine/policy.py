"""What a policy gradient is made of, with gradients, through the model's own modules.

Adapters, gradient checkpointing and the caller's autocast act as they do in transformers' forward, which computes the hidden
states here. The head follows the formulas of `kernels.reference`, some codes at a time: their logits are computed once more
in the backward pass, so that those of all codes never stand at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from janus_dola.engine.scoring import log_distributions
from janus_dola.kernels import reference
from janus_dola.kernels.types import Head, SamplingParams, SamplingTensors
from janus_dola.models.model import ImageModel, PromptRows

_LOGITS_AT_ONCE = 1 << 24  # 64 MB in float32, a few times over


class Policy(NamedTuple):
    """What `JanusDoLa.policy` returns, with gradients: on the model's device, in float32 (float64 if the model is)."""

    log_probs: Tensor  # [P, K, T], of the codes; -inf for a code that cannot be drawn
    entropy: Tensor  # [P, K, T], of the distribution that each code is drawn from, nats
    # [P, K, T], KL(this policy || the reference) there, nats; inf where it draws codes that the reference cannot draw
    kl: Tensor | None


def policy_of(
    image_model: ImageModel,
    rows: Sequence[PromptRows],
    tokens: Tensor,
    layers: Sequence[int],
    params: SamplingParams,
    premature: Tensor | None = None,
    frozen: ImageModel | None = None,
) -> Policy:
    """Computes the policy at tokens [P, K, T]; `frozen` is the reference policy's model, the rest as `scores_of_images`."""
    if image_model.is_packed:
        raise ValueError(
            f"model must hold weights that can be trained, got ones packed as {image_model.stored_as}: load it as float32"
        )
    if params.temperature == 0:
        raise ValueError("temperature must be above 0 for gradients, got 0")
    states, other_states = _normed(image_model, rows, tokens, layers, params.rows), None
    if frozen is not None:
        with torch.no_grad():
            other_states = _normed(frozen, rows, tokens, layers, params.rows).to(image_model.device)
    codes = tokens.flatten().to(image_model.device)
    given = None if premature is None else premature.flatten().to(image_model.device)
    head, other_head = image_model.head, None if frozen is None else frozen.head

    def terms(part: slice) -> tuple[Tensor, ...]:
        own = None if given is None else given[part]
        log_p = _log_distributions(states[:, :, part], head, params, own)
        p = log_p.exp()
        nothing = p == 0
        log_p_drawn = log_p.masked_fill(nothing, 0.0)
        result = log_p.gather(-1, codes[part].unsqueeze(-1)).squeeze(-1), -(p * log_p_drawn).sum(-1)
        if other_states is None or other_head is None:
            return result
        with torch.no_grad():
            log_r = _log_distributions(other_states[:, :, part], other_head, params, own).masked_fill(nothing, 0.0)
        return *result, (p * (log_p_drawn - log_r)).sum(-1)

    at_once = max(1, _LOGITS_AT_ONCE // (len(states) * head.num_codes))
    parts = [slice(begin, begin + at_once) for begin in range(0, len(codes), at_once)]
    columns: Any = zip(
        *(checkpoint(terms, part, use_reentrant=False, preserve_rng_state=False) for part in parts), strict=True
    )
    joined = [torch.cat(column).view(tokens.shape) for column in columns]
    return Policy(joined[0], joined[1], joined[2] if frozen is not None else None)


def _log_distributions(states: Tensor, head: Head, params: SamplingParams, premature: Tensor | None) -> Tensor:
    """Returns log softmax(F / T), [n, V], from normed hidden states [L, rows, n, D]."""
    rows = reference.upcast(states.flatten(1, 2))
    sampling = SamplingTensors.repeat(params, states.shape[2], rows)
    if premature is not None:
        sampling.contrast["premature"] = premature
    logits = reference.guide(reference.apply_head(rows, head), sampling.cfg_weight)
    return log_distributions(reference.decide(reference.upcast(logits), sampling).scores, params.temperature)


def _normed(
    image_model: ImageModel, rows: Sequence[PromptRows], tokens: Tensor, layers: Sequence[int], sides: int
) -> Tensor:
    """Returns the hidden states at all codes, after the final norm: [L, sides, P K T, D]."""
    device, raster = image_model.device, image_model.raster
    images = tokens.to(device).flatten(0, 1)
    fed = image_model.embed_codes(torch.cat([raster.sequence(codes)[:-1] for codes in images])).unflatten(
        0, (len(images), -1)
    )
    whole, places, positions = [], [], []
    for side in range(sides):
        for prompt, both in enumerate(rows):
            words = image_model.embed_text(torch.tensor(both[side], device=device))
            for image in fed[prompt * tokens.shape[1] :][: tokens.shape[1]]:
                whole.append(torch.cat([words, image]))
                places.append(len(words) - 1 + raster.places)
                if image_model.positions is not None:
                    of_image = len(words) + image_model.positions[:, :-1]
                    positions.append(torch.cat([torch.arange(len(words)).expand(3, -1), of_image], 1).T)
    at = torch.arange(len(whole), device=device).unsqueeze(1), torch.stack(places).to(device)
    # Shorter rows are followed by zeros, which nothing looks back at.
    output = image_model.backbone(
        inputs_embeds=pad_sequence(whole, batch_first=True),
        position_ids=pad_sequence(positions, batch_first=True).permute(2, 0, 1).to(device) if positions else None,
        use_cache=False,
        output_hidden_states=bool(layers),
    )
    early = [image_model.final_norm(output.hidden_states[layer][at]) for layer in layers]
    normed = torch.stack([*early, output.last_hidden_state[at]])
    return normed.view(len(normed), sides, -1, normed.shape[-1])
