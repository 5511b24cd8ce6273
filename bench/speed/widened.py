"""Makes a model of a real size that draws: the mini model's function, in wider and more blocks (Net2Net, arXiv 1511.05641).

Random weights accept no guesses, so they say nothing about windows. A widened model draws the mini model's very codes, at a
real model's cost: no weight is zero, and none is left out of a product.

- Hidden states are rotated into more dimensions, h' = Q h with Q^T Q = 1. The mean of their squares is smaller, which norms
  make good. Norms' own weights go into the products behind them.
- Units of the MLP and of the image head, attention heads and their rotary pairs are copied; what reads them shares its
  weight among the copies, at random. Values are rotated as hidden states are.
- More blocks than the mini model's eight stand among them, and add nothing: their copies cancel in pairs.
- More codes than its 512 have random weights and a bias that keeps them from being drawn.

Fewer than eight blocks are its first ones, and draw worse. With more than its 8 codes a side it goes on drawing beyond the
positions it was trained for, and its guesses are accepted less often (bench/findings.md).
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVQVAEConfig, LlamaConfig

from bench.speed import floor
from janus_dola import JanusDoLa
from janus_dola.arguments import MINI
from janus_dola.models.storage import pack_for_cpu

MINI_SIDE, REAL_SIDE = 8, 24
NEVER = (
    -100.0
)  # logit of codes that the mini model does not have: e^-100 of a probability, an ordinary number for arithmetic


class Widening(NamedTuple):
    """A space of d numbers within one of D: what writes into it is multiplied by `write`, what reads it by `read`."""

    write: Tensor  # [D, d]
    read: Tensor  # [d, D]; read write = 1, or 0 where copies cancel


def rotated(small: int, wide: int) -> Widening:
    """Rotates at random into more dimensions."""
    rotation = torch.linalg.qr(torch.randn(wide, small)).Q
    return Widening(rotation.contiguous(), rotation.T.contiguous())


def copied(small: int, wide: int, cancel: bool = False) -> Widening:
    """Copies each number, with shares that sum up to 1 among its copies, or cancel in pairs."""
    shares = torch.rand(wide) + 0.5
    if cancel:
        source = torch.arange(wide) // 2 % small
        shares[1::2] = -shares[::2]
    else:
        source = torch.arange(wide) % small
        shares /= torch.zeros(small).index_add_(0, source, shares)[source]
    write = nn.functional.one_hot(source, small).float()
    return Widening(write, (write * shares.unsqueeze(1)).T.contiguous())


@cache
def _mini() -> JanusDoLa:
    return JanusDoLa.from_pretrained(MINI, device="cpu", dtype="float32")


def widened(
    shape: str,
    blocks: int | None = None,
    codes_a_side: int = MINI_SIDE,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> JanusDoLa:
    """Makes a Janus-Pro of a real size from the mini model.

    Args:
        shape: "1B" or "7B".
        blocks: None makes as many as the real one has.
        codes_a_side: side of an image in codes. With 8 its codes are the mini model's, and so is the image decoder; with 24
            image and decoder have a real size.
        dtype: dtype of the weights; float16 on a CPU is packed, as a checkpoint is when it is loaded.
    """
    mini, sizes, codes = _mini(), floor.BLOCKS[shape], floor.SHAPES[shape].codes
    config = config_of(mini.model.config, sizes, codes, blocks or sizes.number, codes_a_side)
    torch.manual_seed(0)
    with torch.no_grad(), torch.device(device):
        model = random_model(config, dtype)
        _fill(model, mini.model)
        frequencies = _frequencies(mini.model, model)
        model.to(dtype)
        rotary = model.model.language_model.rotary_emb
        rotary.inv_freq, rotary.original_inv_freq = frequencies, frequencies.clone()
    pack_for_cpu(model)
    model.generation_config = mini.model.generation_config
    pipe = JanusDoLa(model, mini.tokenizer)
    pipe.engine.weights.lay_as_one()  # as `from_pretrained` does
    return pipe


def random_model(config: JanusConfig, dtype: torch.dtype) -> JanusForConditionalGeneration:
    """Makes a model in its dtype at once: in float32 first, the 7B shape would not fit into 24 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return JanusForConditionalGeneration(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def layer_of(mini_layer: int, blocks: int) -> int:
    """Returns the layer, as `hidden_states` counts, whose hidden states are those that a layer of the mini model has."""
    return (mini_layer - 1) * max(blocks, 8) // 8 + 1


def config_of(mini: JanusConfig, sizes: floor.BlockShape, codes: int, blocks: int, side: int) -> JanusConfig:
    old, hidden = mini.text_config, sizes.hidden
    text = LlamaConfig(
        vocab_size=old.vocab_size, hidden_size=hidden, intermediate_size=sizes.inner, num_hidden_layers=blocks,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads, max_position_embeddings=2048,
        pad_token_id=old.pad_token_id, rms_norm_eps=old.rms_norm_eps * old.hidden_size / hidden,
    )  # fmt: skip
    real = {"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "latent_channels": 256, "num_res_blocks": 2}
    changes = {"num_patches": side, "num_embeddings": codes, "projection_dim": hidden, "image_token_embed_dim": hidden}
    vq = JanusVQVAEConfig(**mini.vq_config.to_dict() | changes | (real if side == REAL_SIDE else {}))
    pixels = 2 ** (len(vq.channel_multiplier) - 1)
    changes = {
        "projection_dim": hidden, "image_size": pixels * side, "patch_size": pixels, "num_image_tokens": side**2
    }  # fmt: skip
    vision = mini.vision_config.to_dict() | changes
    return JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=mini.image_token_id)


def _frequencies(mini: nn.Module, model: nn.Module) -> Tensor:
    """Copies each rotary frequency as often as its pair is."""
    own, more = (each.model.language_model.rotary_emb.inv_freq for each in (mini, model))
    return own.to(more.device).repeat_interleave(len(more) // len(own))


def _fill(model: nn.Module, mini: nn.Module) -> None:
    """Overwrites the random weights of a model, wherever the mini model has some to widen."""
    old, new = mini.config.text_config, model.config.text_config
    small, hidden = old.hidden_size, new.hidden_size
    stream, text, into_text = rotated(small, hidden), mini.model.language_model, model.model.language_model
    norm = math.sqrt(small / hidden)

    def fill(target: nn.Module, source: nn.Module, write: Tensor | None, read: Tensor | None, scale: float = 1) -> None:
        """Writes a wider weight and bias over the first rows of a module's own."""
        weight = source.weight.to(stream.write.device) * scale
        weight = weight if read is None else weight @ read
        weight = weight if write is None else write @ weight
        target.weight[: len(weight)] = weight
        if getattr(source, "bias", None) is not None:
            bias = source.bias.to(weight.device)
            target.bias[: len(weight)] = bias if write is None else write @ bias

    def normed(source: nn.Module, target: nn.Module) -> Tensor:
        """Returns how the numbers behind a norm are read, whose weights are all alike from now on."""
        target.weight.fill_(norm)
        return source.weight.to(stream.read.device).unsqueeze(1) * stream.read

    for place, block in enumerate(into_text.layers):
        number, first = _source(place, len(into_text.layers))
        _fill_block(block, text.layers[number], fill, stream, normed, cancel=not first)
    head, into_head = mini.model.generation_head, model.model.generation_head
    behind_norm = normed(text.norm, into_text.norm)
    units = copied(small, hidden)
    fill(into_head.proj_out, head.proj_out, units.write, behind_norm)
    into_head.vision_head.bias.fill_(NEVER)
    fill(into_head.vision_head, head.vision_head, None, units.read)
    fill(model.lm_head, mini.lm_head, None, behind_norm)
    fill(into_text.embed_tokens, text.embed_tokens, None, stream.write.T)
    for name in ("generation_aligner", "aligner"):
        source, target = (each.model.get_submodule(name) for each in (mini, model))
        fill(target.fc1, source.fc1, units.write, None)
        fill(target.hidden_layers[0], source.hidden_layers[0], stream.write, units.read)
    fill(model.model.generation_embeddings, mini.model.generation_embeddings, None, None)
    for name in ("vision_model", "vqmodel"):
        source = dict(mini.model.get_submodule(name).named_parameters())
        for parameter, target in model.model.get_submodule(name).named_parameters():
            own = source.get(parameter)
            if own is not None and own.shape[1:] == target.shape[1:] and len(own) <= len(target):
                target[: len(own)] = own.to(target.device)


def _source(place: int, blocks: int) -> tuple[int, bool]:
    """Returns which of the mini model's blocks stands at a place or before it, and whether it stands there."""
    places = [layer_of(layer, blocks) - 1 for layer in range(1, 9)]
    number = max(i for i, each in enumerate(places) if each <= place)
    return number, places[number] == place


def _fill_block(block, mini, fill, stream: Widening, normed, cancel: bool) -> None:
    """Widens a block of the mini model, or makes one of it that adds nothing."""
    attention, wide = mini.self_attn, block.self_attn
    old, new = attention.head_dim, wide.head_dim
    heads = copied(attention.config.num_attention_heads, wide.config.num_attention_heads, cancel)
    values = rotated(old, new)
    shares = torch.rand(old // 2, new // old) + 0.5  # of the copies of a rotary pair
    shares = (shares / shares.sum(1, keepdim=True)).flatten()
    half = torch.eye(old // 2).repeat_interleave(new // old, 0)  # [new / 2, old / 2]
    keys, queries = (torch.block_diag(each, each) for each in (half, half * shares.unsqueeze(1)))
    read = normed(mini.input_layernorm, block.input_layernorm)
    fill(wide.q_proj, attention.q_proj, torch.kron(heads.write, queries), read, math.sqrt(new / old))
    fill(wide.k_proj, attention.k_proj, torch.kron(heads.write, keys), read)
    fill(wide.v_proj, attention.v_proj, torch.kron(heads.write, values.write), read)
    fill(wide.o_proj, attention.o_proj, stream.write, torch.kron(heads.read, values.read))
    units = copied(len(mini.mlp.gate_proj.weight), len(block.mlp.gate_proj.weight), cancel)
    read = normed(mini.post_attention_layernorm, block.post_attention_layernorm)
    fill(block.mlp.gate_proj, mini.mlp.gate_proj, units.write, read)
    fill(block.mlp.up_proj, mini.mlp.up_proj, units.write, read)
    fill(block.mlp.down_proj, mini.mlp.down_proj, stream.write, units.read)
