"""`dola_generate`: DoLa and other contrasts as a decoding function for transformers' `generate`."""

import copy
import math
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from janus_dola.contrasts import Contrast, DoLaConfig, check_contrast
from janus_dola.kernels.contrast import METHODS
from janus_dola.kernels.head import head_scores
from janus_dola.kernels.types import Head, SamplingParams, SamplingTensors
from janus_dola.text.hooks import last_hidden_states, replace_head
from janus_dola.text.language_model import find_text_model, text_head


@dataclass
class DoLaOutput(GenerateDecoderOnlyOutput):
    """What `generate(return_dict_in_generate=True)` returns, with the layers. Values after a row's end mean nothing."""

    premature_layers: Tensor | None = None  # [B, T] int64, the layer contrasted with; N for no contrast
    jsd: Tensor | None = None  # [B, T] float32, its divergence from the final layer, nats


def dola_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    contrast: Contrast | None = None,
    dola: Contrast | None = None,
    stream_to: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> DoLaOutput | Tensor:
    """Decodes for `model.generate(**inputs, custom_generate=dola_generate, contrast=DoLaConfig(), ...)`.

    transformers passes the first five arguments and whatever is not listed here. Its logits processors see the contrasted
    scores. Passes are not compiled. One layer is chosen for each sequence and token.

    Args:
        contrast: how layers are contrasted; None takes the argument `dola_layers` of `generate` ("low", "high" or a list, as
            transformers spells it; the embeddings are left out) and alpha 0.1, or without it the defaults of DoLa.
        dola: the same as `contrast`.
        stream_to: a streamer. transformers keeps its own argument `streamer` from decoding functions.
    Returns:
        as `generate` does: [B, T] int64, or `DoLaOutput` with `return_dict_in_generate`.
    Raises:
        ValueError: the model lacks a part that is needed, a layer does not exist, or beams are asked for.
    """
    if generation_config.num_beams not in (None, 1):
        raise ValueError(f"num_beams must be 1 with DoLa, got {generation_config.num_beams}")
    if contrast is not None and dola is not None:
        raise ValueError(f"contrast must be left out where dola is given, got {contrast!r}")
    name = "contrast" if dola is None else "dola"
    given = check_contrast(contrast if dola is None else dola, name)
    text_model = find_text_model(model)
    blocks, dola_layers = len(text_model.blocks), generation_config.dola_layers
    if dola_layers is not None:
        if given is not None:
            raise ValueError(f"dola_layers must be left out where {name} is given, got {dola_layers!r}")
        layers = named_layers(dola_layers, blocks, text_model.tied)
        given = DoLaConfig([layer for layer in layers if layer > 0] or [0])
    given = given or DoLaConfig()
    read = given.layers_to_read(blocks)
    params = SamplingParams(given.name, given.numbers(read), cfg_weight=None)
    config = copy.copy(generation_config)
    config.disable_compile = True  # hooks take the hidden states out
    latest: deque[tuple[Tensor, Tensor]] = deque(maxlen=1)  # the last pass' layers [B] and their divergences [B]
    chosen: list[tuple[Tensor, Tensor]] = []  # the same by token; a prompt may take several passes
    if stream_to is not None:
        stream_to.put(input_ids.cpu())
    with ExitStack() as hooks:
        if read:
            states = hooks.enter_context(last_hidden_states(text_model, [*read, blocks]))
            compute = _scores_of(text_head(model, text_model), params, [*read, blocks], states, latest)
            hooks.enter_context(replace_head(text_model.head, compute))
            first = _noting(latest, chosen)
        else:
            first = _truncation(params, blocks, chosen)
        output = model._sample(
            input_ids,
            logits_processor=LogitsProcessorList([first, *logits_processor]),
            stopping_criteria=stopping_criteria,
            generation_config=config,
            synced_gpus=False,
            streamer=stream_to,
            **model_kwargs,
        )
    if isinstance(output, Tensor):
        return output
    tokens = output.sequences.shape[1] - input_ids.shape[1]
    numbers, jsd = (torch.stack(each, 1) for each in zip(*chosen[:tokens], strict=True))
    return DoLaOutput(**output, premature_layers=numbers, jsd=jsd)


def _scores_of(
    head: Head,
    params: SamplingParams,
    layers: list[int],
    states: dict[int, Tensor],
    latest: deque[tuple[Tensor, Tensor]],
) -> Callable[[], Tensor]:
    """Returns a function that computes the scores [B, V] of the pass whose states were taken, from all layers at once."""
    numbers = torch.tensor(layers, device=head.norm_weight.device)

    def compute() -> Tensor:
        stack = torch.stack([states[layer].to(head.norm_weight) for layer in layers])
        scores = head_scores(stack, head, params)
        latest.append((numbers[scores.layer], scores.jsd))
        return scores.scores

    return compute


def _noting(latest: deque[tuple[Tensor, Tensor]], chosen: list[tuple[Tensor, Tensor]]) -> Callable:
    """Returns a logits processor that notes the last pass' layers and divergences for the token that is drawn now."""

    def process(input_ids: Tensor, logits: Tensor) -> Tensor:
        layers, jsd = latest[0]
        chosen.append((layers.to(logits.device), jsd.to(logits.device)))
        return logits

    return process


def _truncation(params: SamplingParams, blocks: int, chosen: list[tuple[Tensor, Tensor]]) -> Callable:
    """Returns a logits processor that leaves out the words that a contrast without early layers never draws."""

    def process(input_ids: Tensor, logits: Tensor) -> Tensor:
        sampling = SamplingTensors.repeat(params, len(logits), logits)
        scores, layer, jsd = METHODS[params.method](logits.unsqueeze(0), **sampling.contrast)
        chosen.append((torch.full_like(layer, blocks), jsd))
        return logits.masked_fill(scores.isneginf(), -math.inf)

    return process


def named_layers(dola_layers: str | list[int], blocks: int, tied: bool) -> list[int]:
    """Returns the candidates that transformers takes for "low", "high" or a list; 0 is the embeddings.

    A ValueError says that the value is none of these, or names no layer below the final one.
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
