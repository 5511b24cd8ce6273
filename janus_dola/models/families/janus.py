"""Janus, as transformers' `JanusForConditionalGeneration` or as DeepSeek's own `MultiModalityCausalLM`."""

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedModel

from janus_dola.kernels.types import Head
from janus_dola.models.inspection import is_as_published, weight_of
from janus_dola.models.model import Family, ImageModel, Raster, Vision
from janus_dola.models.packed_linear import PackedLinear
from janus_dola.models.prompts import JanusPrompts


def janus_model(
    family: str,
    backbone: Any,
    image_head: tuple[nn.Linear | PackedLinear, nn.Module, nn.Linear | PackedLinear],
    head_name: str,
    code_modules: tuple[nn.Module, nn.Module],
    to_pixels: Callable[[Tensor], Tensor],
    side: int,
    image_size: int,
    vision: Vision,
) -> ImageModel:
    """A Janus taken apart.

    Args:
        backbone: the decoder without its text head, a LlamaModel.
        image_head: Linear, activation, Linear.
        code_modules: applied to codes one after the other: embedding, aligner.
        side: codes a side of an image.
        image_size: pixels a side.
        vision: for questions about pictures.
    Raises:
        ValueError: the activation of the image head is not the exact GELU, the only one that Janus models use.
    """
    x, activation = torch.linspace(-3, 3, 13), image_head[1]
    if not torch.allclose(activation(x), nn.functional.gelu(x), atol=1e-6):
        raise ValueError(f"the image head's activation must be the exact GELU, got {activation}")

    def head() -> Head:
        projection: Any = image_head[0]
        codes: Any = image_head[2]
        return Head(
            norm_weight=backbone.norm.weight.detach(),
            norm_eps=backbone.norm.variance_epsilon,
            proj_weight=weight_of(projection),
            proj_bias=projection.bias.detach(),
            code_weight=weight_of(codes),
            code_bias=codes.bias.detach(),
        )

    def embed_codes(codes: Tensor) -> Tensor:
        for module in code_modules:
            codes = module(codes)
        return codes

    def code_weights() -> list[Tensor] | None:
        if not all(map(is_as_published, code_modules)):
            return None
        return [weight for module in code_modules for weight in module.parameters()]

    return ImageModel(
        family=family,
        config=backbone.config,
        backbone=backbone,
        blocks=backbone.layers,
        final_norm=backbone.norm,
        embed_text=backbone.get_input_embeddings(),
        image_head=image_head,
        head_name=head_name,
        read_head=head,
        code_modules=code_modules,
        embed_codes=embed_codes,
        code_weights=code_weights,
        to_pixels=to_pixels,
        raster=Raster(side, side),
        image_size=(image_size, image_size),
        prompts=JanusPrompts,
        vision=vision,
    )


def _is_transformers(model: PreTrainedModel) -> bool:
    """Whether the model has this family's modules."""
    inner = getattr(model, "model", None)
    return all(hasattr(inner, name) for name in ("language_model", "generation_head", "generation_aligner", "vqmodel"))


def _adapt_transformers(model: JanusForConditionalGeneration) -> ImageModel:
    """The pieces of the model."""
    inner = model.model
    head = inner.generation_head
    return janus_model(
        family="transformers",
        backbone=inner.language_model,
        image_head=(head.proj_out, head.activation_fn, head.vision_head),
        head_name="model.generation_head",
        code_modules=(inner.generation_embeddings, inner.generation_aligner),
        to_pixels=inner.vqmodel.decode,
        side=math.isqrt(inner.vision_model.config.num_image_tokens),
        image_size=inner.vision_model.config.image_size,
        vision=Vision(model, lambda pixels: inner.aligner(inner.vision_model(pixels).last_hidden_state)),
    )


def _is_deepseek(model: PreTrainedModel) -> bool:
    """Whether the model has this family's modules."""
    return all(hasattr(model, name) for name in ("language_model", "gen_head", "gen_aligner", "gen_vision_model"))


def _adapt_deepseek(model: PreTrainedModel) -> ImageModel:
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

    def to_pixels(codes: Tensor) -> Tensor:
        shape = [codes.shape[0], vq.quantize.e_dim, side, side]
        return pixel_decoder()(codes.to(torch.int32), shape=shape)

    return janus_model(
        family="deepseek",
        backbone=model.language_model.model,
        image_head=(head.output_mlp_projector, head.vision_activation, head.vision_head),
        head_name="gen_head",
        code_modules=(model.gen_embed, model.gen_aligner),
        to_pixels=to_pixels,
        side=side,
        image_size=image_size,
        vision=Vision(model.language_model, lambda pixels: model.aligner(model.vision_model(pixels))),
    )


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


TRANSFORMERS = Family(_is_transformers, _adapt_transformers)
DEEPSEEK = Family(_is_deepseek, _adapt_deepseek)
