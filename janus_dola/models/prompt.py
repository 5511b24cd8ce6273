"""From words to the pair of token rows an image is drawn from, and to the row of a question about pictures."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from janus_dola.models.framing import (
    END_OF_IMAGE,
    FRAMING_TOKENS,
    IMAGE_PLACEHOLDER,
    chat_template,
    special_tokens,
    system_prompt,
)
from janus_dola.models.parts import BEGIN_OF_IMAGE, PromptRows, SpecialTokens, token_id

_MOST_CHARACTERS = 200_000  # far more than any Janus has room for, and tokenized in a second
_MARK = "\ue000"  # stands for the words while the template is rendered
_TEMPLATE_FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> list[int]:
    """The tokens of a prompt: bos, the chat template around the words, begin-of-image.

    The words are plain text: the name of a special token among them is spelled out, so that it frames nothing. A prompt that
    ends with begin-of-image is taken as formatted already, special tokens and all, as upstream's scripts pass it.

    Raises:
        ValueError: the prompt is no valid Unicode or far too long, or the tokenizer's chat template does not print it.
    """
    check_words("prompts", prompt)
    framed = prompt.endswith(BEGIN_OF_IMAGE)
    pieces = [prompt] if framed else _framed_pieces(prompt, tokenizer, after=BEGIN_OF_IMAGE)
    return _ids(pieces, tokenizer, special)


def question_ids(
    question: str, images: int, image_tokens: int, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens
) -> list[int]:
    """The tokens of a question about pictures: bos, a system prompt if there is one, the chat template around both.

    A picture's place is begin-of-image, `image_tokens` placeholders, end-of-image and a line break. Words are plain text.

    Raises:
        ValueError: the question is no valid Unicode or far too long, the tokenizer has no token for pictures, or a chat
            template that does not print the words.
    """
    check_words("question", question)
    for token in (IMAGE_PLACEHOLDER, END_OF_IMAGE):
        token_id(tokenizer, token)
    place = f"{BEGIN_OF_IMAGE}{IMAGE_PLACEHOLDER * image_tokens}{END_OF_IMAGE}\n"
    first, *others = _framed_pieces(question, tokenizer, before=images * place)
    return _ids([system_prompt(tokenizer) + first, *others], tokenizer, special)


def _framed_pieces(words: str, tokenizer: PreTrainedTokenizerBase, before: str = "", after: str = "") -> list[str]:
    """The chat template around the words, in pieces to be encoded one by one."""
    start, end = _frame(tokenizer)
    first, *others = spelled_out(words.strip(), tokenizer)
    pieces = [start + before + first, *others]
    pieces[-1] += end + after
    return pieces


def _ids(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> list[int]:
    ids = [number for piece in pieces for number in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    return ids if ids[0] == special.bos else [special.bos, *ids]


def check_words(name: str, words: str) -> None:
    """Raises ValueError where words are no valid Unicode or far too long."""
    if len(words) > _MOST_CHARACTERS:
        raise ValueError(f"{name} must have at most {_MOST_CHARACTERS} characters each, got one of {len(words)}")
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be valid Unicode, got {words[:40]!a}") from None


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template writes before and after the words of a user.

    Some templates take the words as a string, others in a list of parts.
    """
    template = tokenizer.chat_template or chat_template(tokenizer)
    fault: object = "a text without them"
    contents: tuple[Any, ...] = (_MARK, [{"type": "text", "text": _MARK}])
    for content in contents:
        messages = [{"role": "user", "content": content}]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
        except _TEMPLATE_FAULTS as error:
            fault = " ".join(str(error).split())
            continue
        if text.count(_MARK) == 1:
            before, after = text.split(_MARK)
            return before, after
    raise ValueError(f"tokenizer must have a chat template that prints the words of a user once, got {fault}")


def spelled_out(words: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The words in pieces, cut after the first character of each special token in them; together they are the words."""
    cuts = [0, *(found.start() + 1 for found in _special_names(tokenizer, len(tokenizer)).finditer(words)), len(words)]
    return (words[start:end] for start, end in pairwise(cuts))


@lru_cache(maxsize=4)
def _special_names(tokenizer: PreTrainedTokenizerBase, tokens: int) -> re.Pattern[str]:
    """Finds where the name of a special token begins, for a tokenizer while it has so many tokens."""
    added = tokenizer.added_tokens_decoder.values()
    names = {BEGIN_OF_IMAGE, *(token.content for token in added if token.special or token.content in FRAMING_TOKENS)}
    return re.compile(f"(?={'|'.join(map(re.escape, sorted(names)))})")


def rows_of(ids: list[int], negative: list[int] | None, special: SpecialTokens) -> PromptRows:
    """The two rows of an image, equally long: of its prompt, and the one that guidance leads away from.

    Args:
        negative: tokens of a negative prompt. The shorter of both has pads after its first token. None is the model's own
            unconditional row.
    """
    if negative is None:
        return PromptRows(ids, unconditional(ids, special))
    length = max(len(ids), len(negative))
    first, second = ([row[0], *[special.pad] * (length - len(row)), *row[1:]] for row in (ids, negative))
    return PromptRows(first, second)


def unconditional(ids: Sequence[int], special: SpecialTokens) -> list[int]:
    """The other row of the pair: it keeps the first and the last token of a prompt, and has pads for words."""
    return [ids[0], *[special.pad] * (len(ids) - 2), ids[-1]]


class JanusPrompts:
    """`Prompts` of a Janus.

    Raises:
        ValueError: the tokenizer is not that of a Janus.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self.special = tokenizer, special_tokens(tokenizer)

    def ids(self, prompt: str) -> list[int]:
        """See `prompt_ids`."""
        return prompt_ids(prompt, self._tokenizer, self.special)

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """See `rows_of`."""
        return rows_of(ids, negative, self.special)
