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
    """Token rows of a batch of B images, without repetition.

    The images' own rows are B conditional ones, then B unconditional ones in the same order; images of one prompt share
    theirs, and prompts of one length share the unconditional row. Every row is padded on the left to S tokens. An
    unconditional row keeps the first and the last token of its prompt and has pads for words; those are attended to, the
    padding on the left is not.
    """

    token_ids: Tensor  # [U, S] int64
    attended: Tensor  # [U, S] bool, False on the padding
    row_of: Tensor  # [2B] int64, which of the U rows each row of the batch is


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
    unconditional = [[ids[0], *[special.pad] * (len(ids) - 2), ids[-1]] for ids in prompts]
    rows = [tuple(ids) for ids in (*prompts, *unconditional)]
    distinct = {row: index for index, row in enumerate(dict.fromkeys(rows))}
    longest = max(map(len, distinct))
    token_ids = torch.full((len(distinct), longest), special.pad)
    attended = torch.zeros(len(distinct), longest, dtype=torch.bool)
    for row, index in distinct.items():
        token_ids[index, longest - len(row) :] = torch.tensor(row)
        attended[index, longest - len(row) :] = True
    row_of = torch.tensor([distinct[row] for row in rows])
    return PromptBatch(token_ids.to(device), attended.to(device), row_of.to(device))
