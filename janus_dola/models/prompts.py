"""From words to token ids: the special tokens and the chat template around them, and the rows of an image or a question."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from janus_dola.models.model import BEGIN_OF_IMAGE, PromptRows, SpecialTokens
from janus_dola.models.reading import read_json

PAD = "<｜▁pad▁｜>"  # stands in for words in the unconditional row, whatever the tokenizer's own pad is
_USER, _ASSISTANT = "<|User|>", "<|Assistant|>"
IMAGE_PLACEHOLDER, END_OF_IMAGE = "<image_placeholder>", "<end_of_image>"  # around and in the place of a picture
FRAMING_TOKENS = (BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER, PAD, _USER, _ASSISTANT)
_OLD_SFT_FORMAT = "deepseek_old"  # so DeepSeek's processor_config.json names the roles of the first Janus
_FIRST_JANUS = "janus-1.3b"


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The ids of the tokens that frame a prompt.

    Raises:
        ValueError: the tokenizer is not that of a Janus.
    """
    pad = tokenizer.get_vocab().get(PAD)
    return SpecialTokens(
        bos=named_token_id(tokenizer, "bos_token"),
        begin_of_image=token_id(tokenizer, BEGIN_OF_IMAGE),
        pad=named_token_id(tokenizer, "pad_token") if pad is None else pad,
    )


def chat_template(tokenizer: PreTrainedTokenizerBase, sft_format: str | None = None) -> str:
    """The chat template for a tokenizer that comes without one, as DeepSeek's scripts frame a prompt.

    Janus-Pro was trained with `<|User|>: ...`, the first Janus with `User: ...`. It is the first Janus where the sft format
    is its own, where the tokenizer was loaded from "Janus-1.3B", or has no token `<|User|>`.

    Args:
        sft_format: what `processor_config.json` calls it.
    """
    no_user = tokenizer.convert_tokens_to_ids(_USER) in (None, tokenizer.unk_token_id)
    first = no_user or sft_format == _OLD_SFT_FORMAT or _FIRST_JANUS in _name(tokenizer)
    user, assistant = ("User", "Assistant") if first else (_USER, _ASSISTANT)
    return f"{{% for message in messages %}}{user}: {{{{ message['content'] }}}}\n\n{{% endfor %}}{assistant}:"


def system_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before a question about pictures where the processor says so, as DeepSeek's (with an sft format) does."""
    settings = settings_beside(tokenizer, "processor_config.json")
    return DEFAULT_SYSTEM_PROMPT if settings.get("use_default_system_prompt") or "sft_format" in settings else ""


def settings_beside(tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, Any]:
    """A JSON file of the folder that a tokenizer was loaded from; empty where there is none."""
    folder = tokenizer.name_or_path
    return read_json(Path(folder, name)) if folder and Path(folder, name).is_file() else {}


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    """The last part of what a tokenizer was loaded from; the hub's cache keeps it above the folder of a snapshot."""
    parts = PurePath(tokenizer.name_or_path or "").parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        parts = parts[:-2]
    return parts[-1].lower() if parts else ""


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

    Some templates take the words as a string, others in a list of image_model.
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


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"tokenizer must have the special token {token!r}; is it the tokenizer of this model?")
    return found


def named_token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """The id the tokenizer gives to `bos_token` or `pad_token`.

    Raises:
        ValueError: the tokenizer has none.
    """
    found = getattr(tokenizer, f"{name}_id")
    if found is None:
        raise ValueError(f"tokenizer must have a {name}; is it the tokenizer of this model?")
    return found
