"""Reads a checkpoint in DeepSeek's own format (`model_type` "multi_modality") into transformers' Janus classes.

Their config leaves the layout of the image tokenizer and of the vision tower to their code; here it is read off the
shapes of the weights. Their names map onto transformers' names by the rules below.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

MODEL_TYPE = "multi_modality"
_SIGLIP_HEAD_SIZE = 64

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
    (r"aligner\.layers\.(\d+)\.", lambda found: f"aligner.hidden_layers.{int(found[1]) // 2 - 1}."),
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
# Statistics of their training, and a pooling layer that Janus never calls.
_UNUSED = re.compile(r"^gen_vision_model\.quantize\.codebook_used$|^vision_model\.vision_tower\.attn_pool\.")


def load_deepseek_checkpoint(folder: Path, dtype: torch.dtype | None = None) -> JanusForConditionalGeneration:
    """A transformers model with the weights of a checkpoint in DeepSeek's format.

    Args:
        folder: holds `config.json` and the weights, as `*.safetensors` or `pytorch_model*.bin` (read with
            `weights_only=True`, so that no code in them runs).
        dtype: of the model; None keeps that of the checkpoint.
    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the weights are not those of a Janus model.
    """
    theirs = _read_weights(folder)
    config = convert_config(_read_json(folder), theirs)
    state = convert_weights(theirs)
    dtype = dtype or theirs["language_model.model.norm.weight"].dtype
    model, loading = JanusForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    problems = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if problems:
        raise ValueError(f"{folder} does not hold the weights of a Janus model: {problems}")
    return model.eval()


def read_config(folder: Path) -> JanusConfig:
    """The transformers config of a checkpoint in DeepSeek's format. Raises as `load_deepseek_checkpoint` does."""
    return convert_config(_read_json(folder), _read_weights(folder))


def _read_json(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def convert_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepSeek's state dict under transformers' names: fused qkv split, position embedding [1, P, D] to [P, D]."""
    ours = {}
    for name, weight in theirs.items():
        if _UNUSED.search(name):
            continue
        renamed = name
        for pattern, replacement in _RENAMES:
            renamed = re.sub(pattern, replacement, renamed)
        if ".self_attn.qkv." in renamed:
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                ours[renamed.replace(".qkv.", f".{part}_proj.")] = piece.contiguous()
        elif renamed.endswith("position_embedding.weight"):
            ours[renamed] = weight.squeeze(0)
        else:
            ours[renamed] = weight
    return ours


def convert_config(theirs: dict, weights: dict[str, Tensor]) -> JanusConfig:
    """DeepSeek's config as transformers' JanusConfig; what theirs leaves out is read off the shapes of the weights."""
    text = LlamaConfig(**theirs["language_config"])
    tied = theirs["language_config"].get("tie_word_embeddings", False)
    text.tie_word_embeddings = tied
    tower = "vision_model.vision_tower"
    width, _, patch, _ = weights[f"{tower}.patch_embed.proj.weight"].shape
    image_size = theirs["vision_config"]["params"]["image_size"]
    vision = JanusVisionConfig(
        hidden_size=width,
        num_hidden_layers=_count(weights, rf"{tower}\.blocks\.(\d+)\."),
        num_attention_heads=max(1, width // _SIGLIP_HEAD_SIZE),
        mlp_ratio=weights[f"{tower}.blocks.0.mlp.fc1.weight"].shape[0] / width,
        image_size=image_size,
        patch_size=patch,
        num_image_tokens=(image_size // patch) ** 2,
        projection_dim=weights["aligner.layers.0.weight"].shape[0],
        depth=(_count(weights, r"^aligner\.layers\.(\d+)\.") + 1) // 2,
    )
    vq = "gen_vision_model"
    base = weights[f"{vq}.encoder.conv_in.weight"].shape[0]
    levels = _count(weights, rf"{vq}\.encoder\.conv_blocks\.(\d+)\.")
    codes, code_size = weights["gen_embed.weight"].shape
    image = JanusVQVAEConfig(
        embed_dim=code_size,
        num_embeddings=codes,
        latent_channels=weights[f"{vq}.encoder.conv_out.weight"].shape[0],
        base_channels=base,
        channel_multiplier=[
            weights[f"{vq}.encoder.conv_blocks.{level}.res.0.conv2.weight"].shape[0] // base for level in range(levels)
        ],
        num_res_blocks=_count(weights, rf"{vq}\.encoder\.conv_blocks\.0\.res\.(\d+)\."),
        num_hidden_layers=(_count(weights, r"^gen_aligner\.layers\.(\d+)\.") + 1) // 2,
        projection_dim=weights["gen_head.output_mlp_projector.weight"].shape[0],
        image_token_embed_dim=weights["gen_head.output_mlp_projector.weight"].shape[1],
    )
    return JanusConfig(text_config=text, vision_config=vision, vq_config=image, tie_word_embeddings=tied)


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    """One more than the highest index that `pattern` captures."""
    return 1 + max(int(found[1]) for name in weights if (found := re.search(pattern, name)))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(f"{folder} holds neither *.safetensors nor pytorch_model*.bin")
    weights = {}
    for file in files:
        if file.suffix == ".safetensors":
            weights.update(load_file(file))
        else:
            weights.update(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    missing = [name for name in ("gen_embed.weight", "language_model.model.norm.weight") if name not in weights]
    if missing:
        raise ValueError(f"{folder} does not hold the weights of a Janus model: {missing} not found")
    return weights
