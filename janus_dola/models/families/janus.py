"""Janus, as transformers' `JanusForConditionalGeneration` or as DeepSeek's own `MultiModalityCausalLM`."""

import copy
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from janus_dola.kernels.types import Head
from janus_dola.models.checkpoint import deepseek
from janus_dola.models.eval_copy import in_eval_mode
from janus_dola.models.families.janus_prompts import IMAGE_PLACEHOLDER, JanusPrompts, set_chat_template
from janus_dola.models.model import COMPUTED_BUFFERS, Family, ImageModel, Raster, Vision
from janus_dola.models.weights import is_as_published, weight_of

# In published checkpoints, and of no use: statistics of training DeepSeek's image tokenizer, and a pooling layer that Janus
# never calls.
_UNUSED = re.compile(
    rf"{COMPUTED_BUFFERS}|(gen_vision_model|vqmodel)\.quantize\.codebook_used$"
    r"|^(model\.)?vision_model\.(vision_tower\.)?attn_pool\."
)


def janus_model(
    family: str,
    backbone: Any,
    image_head: tuple[Any, nn.Module, Any],
    head_name: str,
    code_modules: tuple[nn.Module, nn.Module],
    pixel_decoder: nn.Module,
    to_pixels: Callable[[Tensor], Tensor],
    side: int,
    image_size: int,
    vision: Vision,
) -> ImageModel:
    """Takes a Janus apart; its `backbone` is a LlamaModel.

    Args:
        image_head: Linear, activation, Linear; packed or plain.
        code_modules: embedding and aligner, which are applied to codes one after the other.
        side, image_size: codes per side, pixels per side.
        family, head_name, pixel_decoder, to_pixels, vision: as in `ImageModel`.
    Raises:
        ValueError: the activation of the image head is not the exact GELU, the only one that Janus models use.
    """
    x, activation = torch.linspace(-3, 3, 13, dtype=torch.float32, device="cpu"), image_head[1]
    if not torch.allclose(activation(x), nn.functional.gelu(x), atol=1e-6):
        raise ValueError(f"the image head's activation must be the exact GELU, got {activation}")

    def head() -> Head:
        projection, codes = image_head[0], image_head[2]
        return Head(
            norm_weight=backbone.norm.weight,
            norm_eps=backbone.norm.variance_epsilon,
            proj_weight=weight_of(projection),
            proj_bias=projection.bias,
            code_weight=weight_of(codes),
            code_bias=codes.bias,
        )

    def embed_codes(codes: Tensor) -> Tensor:
        for module in code_modules:
            codes = in_eval_mode(module)(codes)
        return codes

    def code_weights() -> list[Tensor] | None:
        weights: list[Tensor] = [weight for module in code_modules for weight in module.parameters()]
        return weights if all(map(is_as_published, code_modules)) else None

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
        pixel_decoder=pixel_decoder,
        to_pixels=to_pixels,
        raster=Raster(side, side),
        image_size=(image_size, image_size),
        prompts=JanusPrompts,
        vision=vision,
    )


def _adapt_transformers(model: JanusForConditionalGeneration) -> ImageModel:
    inner = model.model
    head = inner.generation_head

    def see(pixels: Tensor) -> Tensor:
        return in_eval_mode(inner.aligner)(in_eval_mode(inner.vision_model)(pixels).last_hidden_state)

    return janus_model(
        family="transformers",
        backbone=inner.language_model,
        image_head=(head.proj_out, head.activation_fn, head.vision_head),
        head_name="model.generation_head",
        code_modules=(inner.generation_embeddings, inner.generation_aligner),
        pixel_decoder=inner.vqmodel,
        to_pixels=lambda codes: in_eval_mode(inner.vqmodel).decode(codes),
        side=math.isqrt(inner.vision_model.config.num_image_tokens),
        image_size=inner.vision_model.config.image_size,
        vision=Vision(model, (inner.vision_model, inner.aligner), see),
    )


def _adapt_deepseek(model: PreTrainedModel) -> ImageModel:
    head, vq = model.gen_head, model.gen_vision_model
    image_size = model.config.vision_config.params["image_size"]
    side = image_size // 2 ** (len(vq.decoder.conv_blocks) - 1)

    @cache
    def wide() -> Any:
        # Their decoder's upsampling returns bfloat16 unless it is given float32, so float16 weights would not fit it.
        half = next(vq.parameters()).dtype == torch.float16
        return copy.deepcopy(vq).float() if half else vq

    def to_pixels(codes: Tensor) -> Tensor:
        shape = [codes.shape[0], vq.quantize.e_dim, side, side]
        return in_eval_mode(wide()).decode_code(codes.to(torch.int32), shape=shape)

    def see(pixels: Tensor) -> Tensor:
        return in_eval_mode(model.aligner)(in_eval_mode(model.vision_model)(pixels))

    return janus_model(
        family="deepseek",
        backbone=model.language_model.model,
        image_head=(head.output_mlp_projector, head.vision_activation, head.vision_head),
        head_name="gen_head",
        code_modules=(model.gen_embed, model.gen_aligner),
        pixel_decoder=vq,
        to_pixels=to_pixels,
        side=side,
        image_size=image_size,
        vision=Vision(model.language_model, (model.vision_model, model.aligner), see),
    )


def _check_image_size(config: JanusConfig) -> None:
    vision, levels = config.vision_config, len(config.vq_config.channel_multiplier)
    side = vision.image_size // vision.patch_size  # in codes
    if vision.num_image_tokens != side**2 or vision.image_size != side * 2 ** (levels - 1):
        raise ValueError(
            f"{vision.num_image_tokens} image tokens of {vision.patch_size} pixels a side and {levels} levels of decoding "
            f"do not make an image of {vision.image_size} pixels a side"
        )


def _let_generate(model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets what transformers' own `generate(generation_mode="image")` looks up, and DeepSeek's format does not hold."""
    special, generation = JanusPrompts(tokenizer).special, model.generation_config
    generation.bos_token_id, generation.pad_token_id = special.bos, special.pad
    generation.eos_token_id = tokenizer.eos_token_id
    generation.guidance_scale = 5.0
    generation.generation_kwargs = {"boi_token_id": special.begin_of_image}
    model.config.image_token_id = tokenizer.get_vocab().get(IMAGE_PLACEHOLDER, model.config.image_token_id)


JANUS = Family(
    name="Janus",
    class_name="transformers' JanusForConditionalGeneration",
    members=("model.language_model", "model.generation_head", "model.generation_aligner", "model.vqmodel"),
    adapt=_adapt_transformers,
    model_type="janus",
    model_class=JanusForConditionalGeneration,
    check_config=_check_image_size,
    unused=_UNUSED,
    packed=("model.generation_head.proj_out", "model.generation_head.vision_head", "lm_head"),
    prepare_tokenizer=set_chat_template,
)
# Its checkpoints are loaded into transformers' class, so that nobody needs DeepSeek's package.
DEEPSEEK_JANUS = Family(
    name="Janus",
    class_name="DeepSeek's MultiModalityCausalLM",
    members=("language_model", "gen_head", "gen_aligner", "gen_vision_model"),
    adapt=_adapt_deepseek,
    model_type="multi_modality",
    model_class=JanusForConditionalGeneration,
    check_config=_check_image_size,
    read_config=deepseek.read_config,
    rename=deepseek.rename,
    unused=_UNUSED,
    prepare_tokenizer=set_chat_template,
    prepare_model=_let_generate,
)
