"""A tiny Emu3 with random weights, of transformers' own classes, and a tokenizer for it."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Emu3Config, Emu3ForConditionalGeneration, PreTrainedTokenizerFast

ROWS, COLUMNS, CODES = 4, 5, 48
_SPECIAL = {
    "bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>", "image_token": "<image>",
    "boi_token": "<|image start|>", "eoi_token": "<|image end|>", "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>", "eol_token": "<|extra_200|>",
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, the special tokens, then the tokens of codes, as in the published vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    made.add_special_tokens([AddedToken(name, special=True) for name in (*_SPECIAL.values(), *codes)])
    named = {name: token for name, token in _SPECIAL.items() if name[:3] in ("bos", "eos", "pad")}
    others = {name: token for name, token in _SPECIAL.items() if name not in named}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named, extra_special_tokens=others)


def model(words: PreTrainedTokenizerFast) -> Emu3ForConditionalGeneration:
    """Three blocks with grouped heads; images of 4 x 5 codes, two pixels a side each."""
    vocabulary = words.get_vocab()
    config = Emu3Config(
        text_config={
            "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160,
            "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
        },
        vq_config={
            "codebook_size": CODES, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
            "attn_resolutions": [], "hidden_size": 32, "temporal_downsample_factor": 4,
        },
        vocabulary_map=vocabulary,
        image_area=ROWS * COLUMNS * 4,
        ratio=f"{COLUMNS}:{ROWS}",
    )  # fmt: skip
    torch.manual_seed(4)
    made = Emu3ForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in made.model.text_model.parameters():  # norms, too; and large enough that tokens differ
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    made.lm_head.weight.data.normal_(std=0.15)  # divergences far from ln 2, where layers tie
    return made
