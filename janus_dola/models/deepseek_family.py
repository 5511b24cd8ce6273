"""DeepSeek's own `MultiModalityCausalLM` (package `janus` of their repository, which no registry has)."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from janus_dola.models.janus import janus_parts
from janus_dola.models.parts import JanusParts, Vision


def recognises(model: PreTrainedModel) -> bool:
    """Whether the model has this family's modules."""
    return all(hasattr(model, name) for name in ("language_model", "gen_head", "gen_aligner", "gen_vision_model"))


def parts(model: PreTrainedModel) -> JanusParts:
    """The pieces of the model."""
    head, vq = model.gen_head, model.gen_vision_model
    params = model.config.vision_config.params
    image_size = params["image_size"]
    downsampling = 2 ** (len(vq.decoder.conv_blocks) - 1)
    side = image_size // downsampling

    @cache
    def pixel_decoder() -> Callable[..., Tensor]:
        # Their decoder's upsampling returns bfloat16 unless it is given float32, so float16 weights would not fit it.
        fitting = copy.deepcopy(vq).float() if _dtype(vq) == torch.float16 else vq
        return fitting.decode_code

    def decode_codes(codes: Tensor) -> Tensor:
        shape = [codes.shape[0], vq.quantize.e_dim, side, side]
        return pixel_decoder()(codes.to(torch.int32), shape=shape)

    return janus_parts(
        family="deepseek",
        backbone=model.language_model.model,
        image_head=(head.output_mlp_projector, head.vision_activation, head.vision_head),
        head_name="gen_head",
        code_modules=(model.gen_embed, model.gen_aligner),
        decode_codes=decode_codes,
        side=side,
        image_size=image_size,
        vision=Vision(model.language_model, lambda pixels: model.aligner(model.vision_model(pixels))),
    )


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
