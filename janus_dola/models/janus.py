"""What the two families of Janus share: a head of two linears, an aligner that feeds codes back, prompts in a chat."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from janus_dola.kernels.types import Head
from janus_dola.models.pack import PackedLinear
from janus_dola.models.parts import JanusParts, Raster, Vision, is_as_published, weight_of
from janus_dola.models.prompt import JanusPrompts


def janus_parts(
    family: str,
    backbone: Any,
    image_head: tuple[nn.Linear | PackedLinear, nn.Module, nn.Linear | PackedLinear],
    head_name: str,
    code_modules: tuple[nn.Module, nn.Module],
    decode_codes: Callable[[Tensor], Tensor],
    side: int,
    image_size: int,
    vision: Vision,
) -> JanusParts:
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

    return JanusParts(
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
        decode_codes=decode_codes,
        raster=Raster(side, side),
        image_size=(image_size, image_size),
        prompts=JanusPrompts,
        vision=vision,
    )
