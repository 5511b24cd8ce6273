"""`dola_generate`: DoLa as a decoding function of transformers' `generate`."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from janus_dola.kernels.head import head_scores
from janus_dola.kernels.types import SamplingParams, Scores, log_of
from janus_dola.settings import DoLaConfig
from janus_dola.text.hooks import last_hidden_states, replace_head
from janus_dola.text.legacy import legacy_layers, legacy_scores
from janus_dola.text.model import TextModel, find_text_model, text_head

_Step = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # logits [B, V] to scores, layer [B], JSD [B]


@dataclass
class DoLaOutput(GenerateDecoderOnlyOutput):
    """What `generate(return_dict_in_generate=True)` returns, and what DoLa did. After a row's end both say nothing."""

    premature_layers: Tensor | None = None  # [B, T] int64, the layer contrasted with; N without a contrast
    jsd: Tensor | None = None  # [B, T] float32, its divergence from the final layer, nats


def dola_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    dola: DoLaConfig | None = None,
    legacy: bool = False,
    stream_to: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> DoLaOutput | Tensor:
    """A decoding function for `model.generate(**inputs, custom_generate=dola_generate, dola=DoLaConfig(), ...)`.

    transformers passes the first five arguments and whatever is not listed here. Its logits processors see the contrasted
    scores of the plausible words. Passes are not compiled. One layer is chosen for each sequence and token.

    Args:
        dola: candidate layers, alpha, or one layer; None takes the argument `dola_layers` of `generate` ("low", "high" or
            a list, as transformers spells it; the embeddings are left out) and alpha 0.1, or the defaults without it.
        legacy: computes what transformers did up to 4.56, with `dola_layers`. See `janus_dola.text.legacy`.
        stream_to: a streamer. transformers keeps its own argument `streamer` from decoding functions.
    Returns:
        as `generate` does: [B, T] int64, or `DoLaOutput` with `return_dict_in_generate`.
    Raises:
        ValueError: the model has not the parts that DoLa needs, a layer does not exist, or beams are asked for.
    """
    if generation_config.num_beams not in (None, 1):
        raise ValueError(f"num_beams must be 1 with DoLa, got {generation_config.num_beams}")
    text_model = find_text_model(model)
    dola_layers = generation_config.dola_layers
    if dola is not None and dola_layers is not None:
        raise ValueError(f"dola_layers must be left out where dola is given, got {dola_layers!r}")
    if legacy and dola_layers is None:
        raise ValueError('legacy must come with dola_layers ("low", "high" or a list), got None')
    blocks = len(text_model.blocks)
    named = None if dola_layers is None else legacy_layers(dola_layers, blocks, text_model.tied)
    if dola is None:
        dola = DoLaConfig() if named is None else DoLaConfig([layer for layer in named if layer > 0] or [0])
    read = named if legacy and named is not None else dola.layers_to_read(blocks)
    config = copy.copy(generation_config)
    config.disable_compile = True  # hooks take the hidden states out
    if stream_to is not None:
        stream_to.put(input_ids.cpu())
    with ExitStack() as hooks:
        states = hooks.enter_context(last_hidden_states(text_model, [*read, blocks]))
        if legacy:
            step = _legacy(text_model, read, states)
        elif read:
            contrast = _Contrast(model, text_model, dola, read, states)
            hooks.enter_context(replace_head(text_model.head, contrast.scores))
            step = contrast.step
        else:
            step = _plain(dola, blocks)
        scoring = _Scoring(step)
        found = model._sample(
            input_ids,
            logits_processor=LogitsProcessorList([scoring, *logits_processor]),
            stopping_criteria=stopping_criteria,
            generation_config=config,
            synced_gpus=False,
            streamer=stream_to,
            **model_kwargs,
        )
    if isinstance(found, Tensor):
        return found
    tokens = found.sequences.shape[1] - input_ids.shape[1]
    layers, jsd = (torch.stack(each[:tokens], 1) for each in (scoring.layers, scoring.jsd))
    return DoLaOutput(**found, premature_layers=layers, jsd=jsd)


class _Scoring(LogitsProcessor):
    """Puts DoLa's scores in place of the logits, before all other processors."""

    def __init__(self, step: _Step) -> None:
        self._step = step
        self.layers: list[Tensor] = []
        self.jsd: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores, layers, jsd = self._step(scores)
        self.layers.append(layers)
        self.jsd.append(jsd)
        return scores


def _plain(dola: DoLaConfig, blocks: int) -> _Step:
    """The model's own logits on the plausible words."""

    def step(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        implausible = logits < logits.amax(-1, keepdim=True) + log_of(dola.alpha)
        zeros = torch.zeros(len(logits), device=logits.device)
        return logits.masked_fill(implausible, -torch.inf), torch.full_like(zeros, blocks, dtype=torch.int64), zeros

    return step


class _Contrast:
    """All layers through the head at once, in place of the model's own product with it."""

    def __init__(
        self,
        model: PreTrainedModel,
        text_model: TextModel,
        dola: DoLaConfig,
        read: list[int],
        states: dict[int, Tensor],
    ) -> None:
        self._head = text_head(model, text_model)
        self._decoding = SamplingParams(None, alpha=dola.alpha, premature=None if dola.premature_layer is None else 0)
        self._layers, self._states = [*read, len(text_model.blocks)], states
        self._numbers = torch.tensor(self._layers, device=self._head.norm_weight.device)
        self._found: Scores

    def scores(self) -> Tensor:
        """Of the pass whose states were taken: [B, V], -inf off the plausible words."""
        stack = torch.stack([self._states[layer].to(self._head.norm_weight) for layer in self._layers])
        self._found = head_scores(stack, self._head, self._decoding)
        return self._found.scores

    def step(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scores as they are, and what is known of them."""
        layers = self._numbers[self._found.layer]
        return scores, layers.to(scores.device), self._found.jsd.to(scores.device)


def _legacy(text_model: TextModel, read: list[int], states: dict[int, Tensor]) -> _Step:
    def step(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        early = torch.stack([text_model.head(states[layer]).to(logits.device) for layer in read])
        scores, index, divergence = legacy_scores(logits, early)
        rows = len(logits)
        return scores, torch.tensor(read, device=logits.device)[index].repeat(rows), divergence.repeat(rows)

    return step
