"""Reads a checkpoint in DeepSeek's own format (`model_type` "multi_modality") into transformers' Janus classes.

Their config leaves the layout of image tokenizer and vision tower to their code; here it is read off the weights' shapes.
Their names map onto transformers' names by the rules below.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from janus_dola.models.checkpoint.reading import reading
from janus_dola.models.checkpoint.weights_on_disk import read_weights

_SIGLIP_HEAD_SIZE = 64
# The layouts of the published checkpoints, which are the defaults of transformers' classes; 16 x 16 pixels are one code.
_PUBLISHED_TOWER, _PUBLISHED_TOKENIZER, _PIXELS_PER_CODE = "siglip_large_patch16_384", "VQ-16", 16

# A name goes through every rule in turn.
_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.vision_head\.", "model.generation_head.vision_head."),
    (r"^gen_aligner\.layers\.", "model.generation_aligner.layers."),
    (r"^aligner\.layers\.", "model.aligner.layers."),
    (r"aligner\.layers\.0\.", "aligner.fc1."),
    # Their aligner is a Sequential in which every second module is an activation.
    (r"aligner\.layers\.(\d+)\.", lambda match: f"aligner.hidden_layers.{int(match[1]) // 2 - 1}."),
    (r"^gen_vision_model\.", "model.vqmodel."),
    (r"(vqmodel\.encoder)\.conv_blocks\.(\d+)\.res\.", r"\1.down.\2.block."),
    (r"(vqmodel\.encoder)\.conv_blocks\.", r"\1.down."),
    (r"(vqmodel\.decoder)\.conv_blocks\.(\d+)\.res\.", r"\1.up.\2.block."),
    (r"(vqmodel\.decoder)\.conv_blocks\.", r"\1.up."),
    (r"(vqmodel\.\w+\.mid)\.0\.", r"\1.block_1."),
    (r"(vqmodel\.\w+\.mid)\.1\.", r"\1.attn_1."),
    (r"(vqmodel\.\w+\.mid)\.2\.", r"\1.block_2."),
    (r"^vision_model\.vision_tower\.pos_embed$", "model.vision_model.embeddings.position_embedding.weight"),
    (r"^vision_model\.vision_tower\.patch_embed\.proj\.", "model.vision_model.embeddings.patch_embedding."),
    (r"^vision_model\.vision_tower\.norm\.", "model.vision_model.post_layernorm."),
    (r"^vision_model\.vision_tower\.blocks\.", "model.vision_model.encoder.layers."),
    (r"(vision_model\.encoder\.layers\.\d+)\.attn\.proj\.", r"\1.self_attn.projection_layer."),
    (r"(vision_model\.encoder\.layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"(vision_model\.encoder\.layers\.\d+)\.norm([12])\.", r"\1.layer_norm\2."),
]


def read_config(folder: Path, theirs: dict[str, Any]) -> JanusConfig:
    """Turns `theirs`, which config.json holds, into transformers' config; without weights its layout must be published.

    What does not describe a Janus is an UnreadableModelError.
    """
    try:
        weights = read_weights(folder)
    except FileNotFoundError:
        with reading(
            folder / "config.json", "does not describe a published Janus, and there are no weights to look at"
        ):
            return _published_config(theirs)
    with reading(folder / "config.json", "does not describe a Janus with these weights"):
        return _config_with(theirs, weights)


def rename(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts DeepSeek's tensors under transformers' names: fused qkv split, position embedding [1, P, D] to [P, D]."""
    ours = {}
    for name, weight in theirs.items():
        new_name = name
        for pattern, replacement in _RENAMES:
            new_name = re.sub(pattern, replacement, new_name)
        if ".self_attn.qkv." in new_name:
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                ours[new_name.replace(".qkv.", f".{part}_proj.")] = piece.contiguous()
        else:
            ours[new_name] = weight.squeeze(0) if new_name.endswith("position_embedding.weight") else weight
    return ours


def _config_with(theirs: dict[str, Any], weights: dict[str, Tensor]) -> JanusConfig:
    """Reads what DeepSeek's config leaves out off the weights' shapes; what is wrong with either raises as it comes."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ValueError(f"the weights of a Janus have {name}, these do not")
        return weights[name].shape

    def count(pattern: str) -> int:
        """Returns one more than the highest index that `pattern` captures."""
        return 1 + max((int(match[1]) for name in weights if (match := re.search(pattern, name))), default=-1)

    tower, vq = "vision_model.vision_tower", "gen_vision_model"
    width, _, patch, _ = shape(f"{tower}.patch_embed.proj.weight")
    image_size = theirs["vision_config"]["params"]["image_size"]
    vision = JanusVisionConfig(
        hidden_size=width,
        num_hidden_layers=count(rf"{tower}\.blocks\.(\d+)\."),
        num_attention_heads=max(1, width // _SIGLIP_HEAD_SIZE),
        mlp_ratio=shape(f"{tower}.blocks.0.mlp.fc1.weight")[0] / width,
        image_size=image_size,
        patch_size=patch,
        num_image_tokens=(image_size // patch) ** 2,
        projection_dim=shape("aligner.layers.0.weight")[0],
        depth=(count(r"^aligner\.layers\.(\d+)\.") + 1) // 2,
    )
    base = shape(f"{vq}.encoder.conv_in.weight")[0]
    levels = count(rf"{vq}\.encoder\.conv_blocks\.(\d+)\.")
    codes, code_size = shape("gen_embed.weight")
    image = JanusVQVAEConfig(
        embed_dim=code_size,
        num_embeddings=codes,
        latent_channels=shape(f"{vq}.encoder.conv_out.weight")[0],
        base_channels=base,
        channel_multiplier=[
            shape(f"{vq}.encoder.conv_blocks.{level}.res.0.conv2.weight")[0] // base for level in range(levels)
        ],
        num_res_blocks=count(rf"{vq}\.encoder\.conv_blocks\.0\.res\.(\d+)\."),
        num_hidden_layers=(count(r"^gen_aligner\.layers\.(\d+)\.") + 1) // 2,
        projection_dim=shape("gen_head.output_mlp_projector.weight")[0],
        image_token_embed_dim=shape("gen_head.output_mlp_projector.weight")[1],
    )
    return _config(theirs, vision, image)


def _published_config(theirs: dict[str, Any]) -> JanusConfig:
    params = {part: theirs[f"{part}_config"]["params"] for part in ("vision", "aligner", "gen_aligner", "gen_head")}
    names = params["vision"]["model_name"], theirs["gen_vision_config"]["cls"]
    if names != (_PUBLISHED_TOWER, _PUBLISHED_TOKENIZER):
        raise ValueError(f"it must name {_PUBLISHED_TOWER} and {_PUBLISHED_TOKENIZER}, got {names}")
    image_size = params["vision"]["image_size"]
    vision = JanusVisionConfig(
        image_size=image_size,
        num_image_tokens=(image_size // _PIXELS_PER_CODE) ** 2,
        projection_dim=params["aligner"]["n_embed"],
        depth=params["aligner"]["depth"],
    )
    image = JanusVQVAEConfig(
        embed_dim=theirs["gen_vision_config"]["params"]["n_embed"],
        num_embeddings=params["gen_head"]["image_token_size"],
        num_hidden_layers=params["gen_aligner"]["depth"],
        projection_dim=params["gen_head"]["image_token_embed"],
        image_token_embed_dim=params["gen_head"]["n_embed"],
    )
    return _config(theirs, vision, image)


def _config(theirs: dict[str, Any], vision: JanusVisionConfig, image: JanusVQVAEConfig) -> JanusConfig:
    if theirs["language_config"].get("model_type", "llama") != "llama":
        raise ValueError(f"its language model must be a llama, got {theirs['language_config']['model_type']!r}")
    text = LlamaConfig(**theirs["language_config"])
    tied = text.tie_word_embeddings
    return JanusConfig(text_config=text, vision_config=vision, vq_config=image, tie_word_embeddings=tied)
