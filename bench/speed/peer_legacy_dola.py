"""DoLa as transformers computed it up to version 4.56, a peer to compare with: not what the paper defines.

It differs from the paper in that early layers skip the final norm, the arguments of each KL are swapped (so that the
"divergence" has no bound) and averaged over words, and one layer is taken for the whole batch. alpha is 0.1.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from janus_dola.text.decode import named_layers
from janus_dola.text.hooks import last_hidden_states
from janus_dola.text.language_model import find_text_model

_LOG_ALPHA = math.log(0.1)
_IMPLAUSIBLE_EARLY = -1e-3  # in place of the early layer's log-probability where the final one is cut off


def legacy_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    generation_config: GenerationConfig,
    **arguments,
):
    """Decodes for `model.generate(**inputs, custom_generate=legacy_generate, dola_layers="high")`."""
    text_model = find_text_model(model)
    layers = named_layers(generation_config.dola_layers, len(text_model.blocks), text_model.tied)
    config = copy.copy(generation_config)
    config.disable_compile = True  # hooks take the hidden states out
    with last_hidden_states(text_model, layers) as states:

        def process(input_ids: Tensor, logits: Tensor) -> Tensor:
            return legacy_scores(logits, torch.stack([text_model.head(states[layer]) for layer in layers]))

        return model._sample(
            input_ids,
            logits_processor=LogitsProcessorList([process, *logits_processor]),
            generation_config=config,
            synced_gpus=False,
            streamer=None,
            **arguments,
        )


def legacy_scores(final: Tensor, early: Tensor) -> Tensor:
    """Contrasts the logits of a step.

    Args:
        final: [B, V] float32, logits of the model.
        early: [L, B, V], logits of the candidates.
    Returns:
        [B, V], -inf off the plausible words.
    """
    log_final, log_early = final.log_softmax(-1), early.log_softmax(-1)
    index = torch.zeros((), dtype=torch.int64, device=final.device)
    if len(early) > 1:
        middle = 0.5 * (final.softmax(-1) + early.softmax(-1))
        swapped = [F.kl_div(log_p, middle, reduction="none").mean(-1) for log_p in (log_final[None], log_early)]
        index = (0.5 * (swapped[0] + swapped[1])).mean(-1).argmax()
    plausible = log_final >= log_final.amax(-1, keepdim=True) + _LOG_ALPHA
    base = log_early[index].masked_fill(~plausible, _IMPLAUSIBLE_EARLY)
    return log_final.masked_fill(~plausible, -math.inf) - base
