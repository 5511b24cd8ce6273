"""From words to the pair of token rows an image is drawn from."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from janus_dola.models.parts import BEGIN_OF_IMAGE, SpecialTokens

# What DeepSeek's processor writes, for checkpoints that come without a chat template.
_TEMPLATE = (
    "{% for message in messages %}<|User|>: {{ message['content'][0]['text'].strip() }}\n\n{% endfor %}<|Assistant|>:"
)


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


def unconditional(ids: Sequence[int], special: SpecialTokens) -> list[int]:
    """The other row of the pair: it keeps the first and the last token of a prompt, and has pads for words."""
    return [ids[0], *[special.pad] * (len(ids) - 2), ids[-1]]
