"""Where a text model of transformers keeps its blocks, its final norm and its head."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from janus_dola.kernels.packed import Packed
from janus_dola.kernels.reference import rms_norm
from janus_dola.kernels.types import Head
from janus_dola.models.packed_linear import PackedLinear

_CHANGES_OF_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # between a norm computed two ways; 16 bits: 0.05


@dataclass(frozen=True)
class TextModel:
    """N blocks, one after another; then a norm; then a matrix."""

    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    tied: bool  # the head is the matrix of embeddings


def find_text_model(model: PreTrainedModel) -> TextModel:
    """Finds the parts of a causal language model; a ValueError says what it lacks, or that it has an encoder."""
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder:
        raise ValueError(f"DoLa needs a decoder-only model, got {name}")
    decoder = model.get_decoder()
    decoder = getattr(decoder, "language_model", decoder)  # transformers 4 gives the whole of Janus
    blocks: Any = getattr(decoder, "layers", None)
    norm: Any = getattr(decoder, "norm", None)
    head = model.get_output_embeddings()
    for part, module in (("blocks (model.layers)", blocks), ("final norm (model.norm)", norm), ("head", head)):
        if module is None:
            raise ValueError(f"DoLa reads a model's early layers out through its own head, and {name} has no {part}")
    return TextModel(blocks, norm, head, bool(getattr(config, "tie_word_embeddings", False)))


def text_head(model: PreTrainedModel, parts: TextModel) -> Head:
    """Returns the final norm and the matrix of words, for the head stage.

    A ValueError says that the norm is no RMSNorm, the head no dense matrix, or that logits are changed after the head.
    """
    name, config, head = type(model).__name__, model.config.get_text_config(), parts.head
    for setting in _CHANGES_OF_LOGITS:
        value = getattr(config, setting, None)
        if value is not None and value != 1:
            raise ValueError(f"DoLa cannot read the early layers of {name}: {setting} must be unset or 1, got {value}")
    weight: Any = head.packed if isinstance(head, PackedLinear) else getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.ndim == 2:
        weight = weight.detach()
    elif not isinstance(weight, Packed):
        raise ValueError(f"DoLa needs a head that is one dense matrix, and {name} has a {type(head).__name__}")
    scale, eps = _rms_norm(parts.norm, name)
    bias = getattr(head, "bias", None)
    return Head(scale, eps, weight, code_bias=None if bias is None else bias.detach())


def _rms_norm(norm: nn.Module, name: str) -> tuple[Tensor, float]:
    """Returns scale and eps of an RMSNorm. Gemma's scales by 1 + weight, so both are tried."""
    weight = getattr(norm, "weight", None)
    eps = next((value for key in ("variance_epsilon", "eps") if (value := getattr(norm, key, None)) is not None), None)
    if isinstance(weight, Tensor) and weight.ndim == 1 and eps is not None:
        weight = weight.detach()
        probe = torch.linspace(-1, 2, len(weight), dtype=weight.dtype, device=weight.device)
        expected = norm(probe[None])[0].detach()
        tolerance = _TOLERANCE.get(weight.dtype, 0.05)
        for scale in (weight, 1 + weight):
            close = torch.isclose(rms_norm(probe, scale, eps).to(expected.dtype), expected, tolerance, tolerance)
            if bool(close.all()):
                return scale, float(eps)
    raise ValueError(f"DoLa needs a final RMSNorm, and {name} ends with a {type(norm).__name__}")
