"""Times a token of text by transformers' `generate`, random weights of a real shape: plain, with DoLa, with the old DoLa."""

from functools import lru_cache

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.speed import floor
from bench.speed.peer_legacy_dola import legacy_generate
from janus_dola.text import dola_generate

PROMPT, TOKENS = 16, 32
SHAPES = {
    "mini": (floor.BlockShape("mini", 192, 8, 6, 512), 6, 512),  # key-value heads and words come last
    "8B": (floor.BlockShape("8B", 4096, 32, 32, 14336), 8, 128256),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DOLA = {"custom_generate": dola_generate, "dola_layers": "high"}
WAYS = {"plain": {}, "DoLa": DOLA, "legacy": {"custom_generate": legacy_generate, "dola_layers": "high"}}


@lru_cache(maxsize=1)
def random_llama(shape: str, device: str, dtype: str):
    """Makes a Llama of random weights."""
    sizes, key_value_heads, words = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=words, hidden_size=sizes.hidden, intermediate_size=sizes.inner, num_hidden_layers=sizes.number,
        num_attention_heads=sizes.heads, num_key_value_heads=key_value_heads, max_position_embeddings=2048,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval().requires_grad_(False)


def test_text(timed, device, benchmark, shape, dtype, sequences, way):
    model = random_llama(shape, device, dtype)
    ids = torch.arange(3, 3 + sequences * PROMPT, device=device).reshape(sequences, PROMPT)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    weights = sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()
    timed(
        [lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **length, **WAYS[way])],
        floor.Work(weights * DTYPES[dtype].itemsize, 2 * weights * sequences),
        rounds=5, shape=shape, dtype=dtype, sequences=sequences, way=way,
    )  # fmt: skip
    benchmark.extra_info["calls"] = TOKENS  # a token is one


def table(shape, dtype, sequences):
    return {
        f"{shape}-{dtype}-{count}-{way}": {"shape": shape, "dtype": dtype, "sequences": count, "way": way}
        for count in sequences for way in WAYS
    }  # fmt: skip


test_text.cases = {"cpu": table("mini", "float32", [1]), "cuda": table("8B", "bfloat16", [1, 4])}
