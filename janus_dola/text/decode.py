"""`dola_generate`: DoLa and other contrasts as a decoding function for transformers' `generate`."""

import copy
import math
import re
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from janus_dola.contrasts import Contrast, DoLaConfig, check_contrast
from janus_dola.kernels.contrast import ADMITTED, METHODS
from janus_dola.kernels.head_torch import head_logits
from janus_dola.kernels.types import Head, SamplingParams, SamplingTensors
from janus_dola.models.eval_copy import eval_copy
from janus_dola.models.soundness import check_sound
from janus_dola.text.hooks import last_hidden_states, replace_head
from janus_dola.text.language_model import find_text_model, text_head

# What transformers lets follow the processors that ban words or rescore them one by one.
_AFTER = re.compile("LogitsWarper|LogitNormalization|Watermark")


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
    scores of all words; of the words that they leave the plausible ones are kept; then follow temperature, top-k and other
    warpers. Passes are not compiled. One layer is chosen for each sequence and token.

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
    model = eval_copy(model)  # with hooks of its own, and in eval mode
    text_model = find_text_model(model)
    check_sound((text_model.norm, text_model.head), hooked=True)
    blocks, dola_layers = len(text_model.blocks), generation_config.dola_layers
    if dola_layers is not None:
        if given is not None:
            raise ValueError(f"dola_layers must be left out where {name} is given, got {dola_layers!r}")
        layers = named_layers(dola_layers, blocks, text_model.tied)
        given = DoLaConfig([layer for layer in layers if layer > 0] or [0])
    given = given or DoLaConfig()
    if isinstance(given, DoLaConfig) and given.lens is not None:
        raise ValueError(f"lens must be None for text, since lenses are for image codes, got {given.lens!r}")
    read = given.layers_to_read(blocks)
    params = SamplingParams(given.name, given.numbers(read), cfg_weight=None)
    config = copy.copy(generation_config)
    config.disable_compile = True  # hooks take the hidden states out
    steps = _Steps(params, blocks, bool(read))
    if stream_to is not None:
        stream_to.put(input_ids.cpu())
    with ExitStack() as hooks:
        if read:
            states = hooks.enter_context(last_hidden_states(text_model, [*read, blocks]))
            compute = _scores_of(text_head(model, text_model), params, [*read, blocks], states, steps.latest)
            hooks.enter_context(replace_head(text_model.head, compute))
        output = model._sample(
            input_ids,
            logits_processor=steps.among(logits_processor),
            stopping_criteria=stopping_criteria,
            generation_config=config,
            synced_gpus=False,
            streamer=stream_to,
            **model_kwargs,
        )
    if isinstance(output, Tensor):
        return output
    tokens = output.sequences.shape[1] - input_ids.shape[1]
    numbers, jsd = (torch.stack(each, 1) for each in zip(*steps.chosen[:tokens], strict=True))
    return DoLaOutput(**output, premature_layers=numbers, jsd=jsd)


class _Pass(NamedTuple):
    """What a pass computes for the last position of each row, beside the scores."""

    layers: Tensor  # [B] int64, contrasted with; N for no contrast
    jsd: Tensor  # [B]
    final: Tensor  # [B, V], the final layer's logits


def _scores_of(
    head: Head, params: SamplingParams, layers: list[int], states: dict[int, Tensor], latest: deque[_Pass]
) -> Callable[[], Tensor]:
    """Returns a function that computes the scores [B, V] of the pass whose states were taken, from all layers at once."""
    numbers = torch.tensor(layers, device=head.norm_weight.device)

    def compute() -> Tensor:
        stack = torch.stack([states[layer].to(head.norm_weight) for layer in layers])
        logits = head_logits(stack, head, params.cfg_weight)
        sampling = SamplingTensors.repeat(params, stack.shape[1], logits)
        scores, layer, jsd = METHODS[params.method](logits, **sampling.contrast, everywhere=True)
        latest.append(_Pass(numbers[layer], jsd, logits[-1]))
        return scores

    return compute


class _Steps:
    """Follows transformers' loop: what was contrasted at each token, and which words may be drawn there.

    A word is plausible among the words that the logits processors leave: they may leave out the most probable one.
    """

    def __init__(self, params: SamplingParams, blocks: int, reads: bool) -> None:
        self._params, self._blocks, self._reads = params, blocks, reads
        self.latest: deque[_Pass] = deque(
            maxlen=1
        )  # the last pass; a prompt may take several. None where no layer is read
        self.chosen: list[tuple[Tensor, Tensor]] = []  # layers [B] and their divergences [B], by token
        self._final = torch.empty(0)  # [B, V], for the token that is drawn now

    def among(self, processors: LogitsProcessorList) -> LogitsProcessorList:
        """Returns processors that leave out the words that are not plausible, after those that ban words, before warpers."""
        names = ["".join(each.__name__ for each in type(processor).__mro__) for processor in processors]
        place = next((i for i, name in enumerate(names) if _AFTER.search(name)), len(names))
        return LogitsProcessorList([self._note, *processors[:place], self._keep_plausible, *processors[place:]])

    def _note(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        if self._reads:
            if not self.latest:
                raise ValueError(
                    "model must call its own blocks and head, got one whose forward was replaced by another's"
                )
            layers, jsd, final = self.latest[0]
        else:
            layers = torch.full(logits.shape[:1], self._blocks, device=logits.device)
            jsd, final = logits.new_zeros(len(logits)), logits.clone()
        self.chosen.append((layers.to(logits.device), jsd.to(logits.device)))
        self._final = final.to(logits.device)
        return logits

    def _keep_plausible(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # `remove_invalid_values` puts the lowest number in place of -inf.
        left_out = scores <= torch.finfo(scores.dtype).min
        sampling = SamplingTensors.repeat(self._params, len(scores), self._final)
        plausible = ADMITTED[self._params.method](self._final.masked_fill(left_out, -math.inf), **sampling.contrast)
        return scores.masked_fill(~plausible, -math.inf)


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
