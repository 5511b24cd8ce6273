"""Makes Janus models of real sizes with random weights, to measure where there are no checkpoints."""

from functools import cache

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from bench.speed import floor
from janus_dola import JanusDoLa
from janus_dola.arguments import MINI
from janus_dola.models.storage import pack_for_cpu

CODES, REAL_SIDE = 16384, 24


@cache
def _tokenizer():
    return JanusDoLa.from_pretrained(MINI, device="cpu").tokenizer


def random_janus(
    shape: str,
    blocks: int | None = None,
    codes_a_side: int = REAL_SIDE,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> JanusDoLa:
    """Makes a Janus-Pro of random weights, with the tokenizer of the mini model.

    Args:
        shape: "1B" or "7B".
        blocks: None makes as many as the real one has.
        codes_a_side: side of an image in codes; with fewer than the real 24 the image decoder is small.
        dtype: dtype of the weights; float16 on a CPU is packed, as a checkpoint is when it is loaded.
    """
    sizes = floor.BLOCKS[shape]
    hidden, heads = sizes.hidden, sizes.heads  # the image head is as wide as the hidden size
    tokenizer = _tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=sizes.inner,
        num_hidden_layers=blocks or sizes.number, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=2048, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    real = codes_a_side == REAL_SIDE
    pixels_a_code = 16 if real else 8
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, mlp_ratio=2.0, projection_dim=hidden,
        image_size=pixels_a_code * codes_a_side, patch_size=pixels_a_code, num_image_tokens=codes_a_side**2,
    )  # fmt: skip
    decoder = (
        {}
        if real
        else {"latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1}
    )
    vq = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=CODES, num_patches=codes_a_side, projection_dim=hidden, image_token_embed_dim=hidden,
        num_hidden_layers=2, **decoder,
    )  # fmt: skip
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = JanusForConditionalGeneration(config).to(dtype).eval().requires_grad_(False)
    pack_for_cpu(model)
    generation = model.generation_config
    generation.bos_token_id, generation.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    generation.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")}
    pipe = JanusDoLa(model, tokenizer)
    pipe.engine.weights.lay_as_one()  # as `from_pretrained` does
    return pipe
