"""Tiny language models with random weights, for tests and for the script that records an old transformers."""

import torch
import transformers

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {"Llama": {}, "Qwen2": {"tie_word_embeddings": True}, "Phi3": {}, "Gemma": {"head_dim": 8}}


def text_model(family: str, **settings: object) -> transformers.PreTrainedModel:
    """A float32 model whose weights depend on the names and shapes of its parameters only, not on torch's generator."""
    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **FAMILIES.get(family, {}), **settings})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            numbers = torch.arange(weight.numel(), dtype=torch.float64).reshape(weight.shape)
            noise = torch.sin(numbers * 12.9898 + sum(map(ord, name))) * 43758.5453
            weight.copy_((noise - noise.floor() - 0.5) * (0.6 if weight.ndim > 1 else 0.2) + ("norm" in name))
    return model


def padded_batch() -> dict[str, torch.Tensor]:
    """Three prompts of 7, 4 and 2 tokens, padded on the left."""
    ids = torch.tensor([[1, 5, 9, 13, 60, 71, 8], [0, 0, 0, 1, 44, 3, 90], [0, 0, 0, 0, 0, 1, 33]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}
