"""A tiny GLM-Image with random weights, of transformers' own classes, and a tokenizer for it."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, PreTrainedTokenizerFast

CODES = 40
_OTHERS = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}


def tokenizer(codes: int = CODES) -> PreTrainedTokenizerFast:
    """The tokens of codes, then bytes and the other special tokens, as in the published vocabulary."""
    tokens = [f"<|dit_token_{code}|>" for code in range(codes + 2)]
    named = {"bos_token": tokens[-2], "eos_token": tokens[-1], "pad_token": "<|endoftext|>"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*tokens, *alphabet])}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in (*tokens, *named.values(), *_OTHERS.values())])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, padding_side="left", **named, extra_special_tokens=_OTHERS,
        chat_template=f"""{{%- for message in messages -%}}
{{%- if message.content is string -%}}
{{{{ message.content }}}}
{{%- else -%}}
{{%- for part in message.content -%}}
{{%- if part.type == "image" -%}}{tokens[-2]}<|image|>{tokens[-1]}{{%- else -%}}{{{{ part.text }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
{{%- endfor -%}}""",  # nothing around the words
    )  # fmt: skip


def config(words: PreTrainedTokenizerFast, height: int, width: int, **text: int) -> GlmImageConfig:
    """Three blocks with grouped heads, unless `text` says so; heads have 16 numbers."""
    codes = words.convert_tokens_to_ids(words.bos_token)
    return GlmImageConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 640, "pad_token_id": 0,
            "vision_vocab_size": codes + 8, "eos_token_id": codes + 1,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 2, 1],
            },
            **text,
        },
        vision_config={
            "depth": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 8, "image_size": 32, "patch_size": 16,
        },
        vq_config={"embed_dim": 8, "num_embeddings": codes, "latent_channels": 8},
        image_start_token_id=codes, image_end_token_id=codes + 1,
        image_token_id=words.convert_tokens_to_ids("<|image|>"),
        target_h=height, target_w=width,
    )  # fmt: skip


def model(words: PreTrainedTokenizerFast, height: int = 128, width: int = 128) -> GlmImageForConditionalGeneration:
    """A random one; images of `height` x `width` pixels, 32 a side for each code."""
    torch.manual_seed(4)
    made = GlmImageForConditionalGeneration(config(words, height, width)).eval().requires_grad_(False)
    for parameter in made.model.language_model.parameters():  # norms, too; and large enough that tokens differ
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    made.lm_head.weight.data.normal_(std=0.15)  # divergences far from ln 2, where layers tie
    return made
