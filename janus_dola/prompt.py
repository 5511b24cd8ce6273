"""From words to the pair of token rows an image is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from janus_dola.models.parts import BEGIN_OF_IMAGE, SpecialTokens

# What DeepSeek's processor writes, for checkpoints that come without a chat template.
_TEMPLATE = (
    "{% for message in messages %}<|User|>: {{ message['content'][0]['text'].strip() }}\n\n{% endfor %}<|Assistant|>:"
)


@dataclass(frozen=True)
class PromptBatch:
    """Token rows of a batch: B conditional rows, then the B unconditional ones in the same order.

    Every row is padded on the left to S tokens. An unconditional row keeps the first and the last token of its prompt and
    has pads for words; those are attended to, the padding on the left is not.
    """

    token_ids: Tensor  # [2B, S] int64
    attended: Tensor  # [2B, S] bool, False on the padding


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> list[int]:
    """The tokens of a prompt: bos, the chat template around the words, begin-of-image.

    A prompt that ends with begin-of-image is taken as formatted already, as upstream's scripts pass it.
    """
    text = prompt
    if not prompt.endswith(BEGIN_OF_IMAGE):
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        template = None if tokenizer.chat_template else _TEMPLATE
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        text += BEGIN_OF_IMAGE
    ids = tokenizer(text)["input_ids"]
    # Whether a tokenizer adds bos by itself differs between checkpoints and versions of transformers.
    return ids if ids[0] == special.bos else [special.bos, *ids]


def prompt_batch(prompts: Sequence[list[int]], special: SpecialTokens, device: torch.device) -> PromptBatch:
    """The rows for one image per entry of `prompts`, each a list of token ids from `prompt_ids`."""
    longest = max(len(ids) for ids in prompts)
    conditional = torch.full((len(prompts), longest), special.pad)
    unconditional = conditional.clone()
    attended = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        start = longest - len(ids)
        conditional[row, start:] = torch.tensor(ids)
        unconditional[row, start], unconditional[row, -1] = ids[0], ids[-1]
        attended[row, start:] = True
    return PromptBatch(torch.cat([conditional, unconditional]).to(device), attended.repeat(2, 1).to(device))
