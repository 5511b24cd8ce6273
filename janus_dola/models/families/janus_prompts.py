"""Frames words as Janus does: special tokens and a chat template around a prompt, or around a question about pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from janus_dola.models.model import PromptRows
from janus_dola.models.words import check_words, named_token_id, settings_beside, spelled_out, token_id

BEGIN_OF_IMAGE = "<begin_of_image>"
PAD = "<｜▁pad▁｜>"  # stands in for words in the unconditional row, whatever the tokenizer's own pad is
IMAGE_PLACEHOLDER, END_OF_IMAGE = "<image_placeholder>", "<end_of_image>"  # in the place of a picture, and behind it
_USER, _ASSISTANT = "<|User|>", "<|Assistant|>"
_FRAMING_TOKENS = frozenset({BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER, PAD, _USER, _ASSISTANT})
_PROCESSOR = "processor_config.json"
_OLD_SFT_FORMAT = "deepseek_old"  # so DeepSeek's processor_config.json names the roles of the first Janus
_FIRST_JANUS = "janus-1.3b"
_MARK = "\ue000"  # stands for the words while the template is rendered
_TEMPLATE_FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class SpecialTokens:
    """The token ids that frame an image prompt."""

    bos: int
    begin_of_image: int
    pad: int  # stands in for the words in the unconditional row


class JanusPrompts:
    """`Prompts` for a Janus.

    Raises:
        ValueError: the tokenizer is not a Janus tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self.special = tokenizer, special_tokens(tokenizer)

    def ids(self, prompt: str) -> list[int]:
        """Returns what `prompt_ids` does."""
        return prompt_ids(prompt, self._tokenizer, self.special)

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """Returns an image's two rows, equally long: the prompt's, and the one that guidance leads away from.

        Args:
            ids: the prompt's tokens.
            negative: a negative prompt's tokens; the shorter one gets pads after its first token. None takes the
                model's own unconditional row.
        """
        if negative is None:
            return PromptRows(ids, unconditional(ids, self.special))
        length, pad = max(len(ids), len(negative)), self.special.pad
        first, second = ([row[0], *[pad] * (length - len(row)), *row[1:]] for row in (ids, negative))
        return PromptRows(first, second)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Returns the token ids that frame a prompt.

    Raises:
        ValueError: the tokenizer is not a Janus tokenizer.
    """
    pad = tokenizer.get_vocab().get(PAD)
    return SpecialTokens(
        bos=named_token_id(tokenizer, "bos_token"),
        begin_of_image=token_id(tokenizer, BEGIN_OF_IMAGE),
        pad=named_token_id(tokenizer, "pad_token") if pad is None else pad,
    )


def unconditional(ids: Sequence[int], special: SpecialTokens) -> list[int]:
    """Returns the row beside a prompt's: its first and last token, and pads for the words."""
    return [ids[0], *[special.pad] * (len(ids) - 2), ids[-1]]


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> list[int]:
    """Returns a prompt's tokens: bos, the chat template around the words, begin-of-image.

    The words are plain text: a special token's name among them is spelled out, so that it frames nothing. A prompt that
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
    """Returns the tokens for a question about pictures: bos, a system prompt if there is one, the chat template around both.

    A picture's place is begin-of-image, `image_tokens` placeholders, end-of-image and a line break. Words are plain text.

    Raises:
        ValueError: the question is no valid Unicode or far too long, the tokenizer has no token for pictures, or its chat
            template does not print the words.
    """
    check_words("question", question)
    for token in (IMAGE_PLACEHOLDER, END_OF_IMAGE):
        token_id(tokenizer, token)
    place = f"{BEGIN_OF_IMAGE}{IMAGE_PLACEHOLDER * image_tokens}{END_OF_IMAGE}\n"
    first, *others = _framed_pieces(question, tokenizer, before=images * place)
    return _ids([_system_prompt(tokenizer) + first, *others], tokenizer, special)


def set_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Sets the chat template from a checkpoint's processor, where there is one and the tokenizer has no template."""
    settings = settings_beside(tokenizer, _PROCESSOR)
    if tokenizer.chat_template is None and settings:
        tokenizer.chat_template = _chat_template(tokenizer, settings.get("sft_format"))


def _chat_template(tokenizer: PreTrainedTokenizerBase, sft_format: str | None = None) -> str:
    """Returns the chat template for a tokenizer that comes without one, as DeepSeek's scripts frame a prompt.

    Janus-Pro was trained with `<|User|>: ...`, the first Janus with `User: ...`. It is the first Janus where the sft format
    is its own, where the tokenizer was loaded from "Janus-1.3B", or has no token `<|User|>`.

    Args:
        sft_format: what `processor_config.json` calls it.
    """
    no_user = tokenizer.convert_tokens_to_ids(_USER) in (None, tokenizer.unk_token_id)
    first = no_user or sft_format == _OLD_SFT_FORMAT or _FIRST_JANUS in _name(tokenizer)
    user, assistant = ("User", "Assistant") if first else (_USER, _ASSISTANT)
    return f"{{% for message in messages %}}{user}: {{{{ message['content'] }}}}\n\n{{% endfor %}}{assistant}:"


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the last name in the path that a tokenizer was loaded from; in the hub's cache it lies above the snapshot."""
    parts = PurePath(tokenizer.name_or_path or "").parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        parts = parts[:-2]
    return parts[-1].lower() if parts else ""


def _system_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns what stands before a question where the processor says so, as DeepSeek's (with an sft format) does."""
    settings = settings_beside(tokenizer, _PROCESSOR)
    return DEFAULT_SYSTEM_PROMPT if settings.get("use_default_system_prompt") or "sft_format" in settings else ""


def _framed_pieces(words: str, tokenizer: PreTrainedTokenizerBase, before: str = "", after: str = "") -> list[str]:
    """Puts the chat template around the words, in pieces to be tokenized one by one."""
    start, end = _frame(tokenizer)
    first, *others = spelled_out(words.strip(), tokenizer, _FRAMING_TOKENS)
    pieces = [start + before + first, *others]
    pieces[-1] += end + after
    return pieces


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Returns what the chat template writes before and after a user's words.

    Some templates take the words as a string, others in a list.
    """
    template = tokenizer.chat_template or _chat_template(tokenizer)
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


def _ids(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: SpecialTokens) -> list[int]:
    ids = [number for piece in pieces for number in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    return ids if ids[0] == special.bos else [special.bos, *ids]
