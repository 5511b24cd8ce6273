"""Frames words as Janus does: special tokens and a chat template around a prompt, or around a question about pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from janus_dola.models.model import PromptRows
from janus_dola.models.words import (
    around_words,
    check_words,
    named_token_id,
    settings_beside,
    spelled_out,
    token_id,
)

BEGIN_OF_IMAGE = "<begin_of_image>"
PAD = "<｜▁pad▁｜>"  # stands in for words in the unconditional row, whatever the tokenizer's own pad is
IMAGE_PLACEHOLDER, END_OF_IMAGE = "<image_placeholder>", "<end_of_image>"  # in the place of a picture, and behind it
_USER, _ASSISTANT = "<|User|>", "<|Assistant|>"
_FRAMING_TOKENS = frozenset({BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_PLACEHOLDER, PAD, _USER, _ASSISTANT})
_PROCESSOR = "processor_config.json"
_OLD_SFT_FORMAT = "deepseek_old"  # so DeepSeek's processor_config.json names the roles of the first Janus
_FIRST_JANUS = "janus-1.3b"


@dataclass(frozen=True)
class SpecialTokens:
    """The token ids that frame an image prompt."""

    bos: int
    begin_of_image: int
    pad: int  # stands in for the words in the unconditional row


class JanusPrompts:
    """`Prompts` for a Janus; also frames questions about pictures. A tokenizer of another model is a ValueError."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        pad = tokenizer.get_vocab().get(PAD)
        self._tokenizer = tokenizer
        self.special = SpecialTokens(
            bos=named_token_id(tokenizer, "bos_token"),
            begin_of_image=token_id(tokenizer, BEGIN_OF_IMAGE),
            pad=named_token_id(tokenizer, "pad_token") if pad is None else pad,
        )

    def ids(self, prompt: str) -> list[int]:
        """Returns a prompt's tokens: bos, the chat template around the words, begin-of-image.

        The words are plain text: a special token's name among them is spelled out, so that it frames nothing. A prompt that
        ends with begin-of-image is taken as formatted already, special tokens and all, as upstream's scripts pass it.

        Raises:
            ValueError: the prompt is no valid Unicode or far too long, or the tokenizer's chat template does not print it.
        """
        check_words("prompts", prompt)
        framed = prompt.endswith(BEGIN_OF_IMAGE)
        return self._encode([prompt] if framed else _framed_pieces(prompt, self._tokenizer, after=BEGIN_OF_IMAGE))

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """Returns an image's two rows, equally long: the shorter one gets pads after its first token.

        Without a negative prompt the second row is the prompt's first and last token, and pads for the words.
        """
        pad = self.special.pad
        if negative is None:
            return PromptRows(ids, [ids[0], *[pad] * (len(ids) - 2), ids[-1]])
        length = max(len(ids), len(negative))
        return PromptRows(*([row[0], *[pad] * (length - len(row)), *row[1:]] for row in (ids, negative)))

    def question_ids(self, question: str, images: int, image_tokens: int) -> list[int]:
        """Returns a question's tokens: bos, a system prompt if there is one, the chat template around pictures and words.

        A picture is begin-of-image, `image_tokens` placeholders, end-of-image and a line break. Words are plain text.

        Raises:
            ValueError: the question is no valid Unicode or far too long, the tokenizer has no token for pictures, or its
                chat template does not print the words.
        """
        check_words("question", question)
        for token in (IMAGE_PLACEHOLDER, END_OF_IMAGE):
            token_id(self._tokenizer, token)
        place = f"{BEGIN_OF_IMAGE}{IMAGE_PLACEHOLDER * image_tokens}{END_OF_IMAGE}\n"
        first, *others = _framed_pieces(question, self._tokenizer, before=images * place)
        # DeepSeek's processors, which have an sft format, always use it.
        settings = settings_beside(self._tokenizer, _PROCESSOR)
        if settings.get("use_default_system_prompt") or "sft_format" in settings:
            first = DEFAULT_SYSTEM_PROMPT + first
        return self._encode([first, *others])

    def _encode(self, pieces: Sequence[str]) -> list[int]:
        ids = [number for piece in pieces for number in self._tokenizer(piece, add_special_tokens=False)["input_ids"]]
        return ids if ids[0] == self.special.bos else [self.special.bos, *ids]


def set_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Sets the chat template from a checkpoint's processor, where there is one and the tokenizer has no template."""
    settings = settings_beside(tokenizer, _PROCESSOR)
    if tokenizer.chat_template is None and settings:
        tokenizer.chat_template = _chat_template(tokenizer, settings.get("sft_format"))


def _chat_template(tokenizer: PreTrainedTokenizerBase, sft_format: str | None = None) -> str:
    """Returns the chat template for a tokenizer that comes without one, as DeepSeek's scripts frame a prompt.

    Janus-Pro was trained with `<|User|>: ...`, the first Janus with `User: ...`. It is the first Janus where the processor's
    sft format is its own, where the tokenizer was loaded from "Janus-1.3B", or has no token `<|User|>`.
    """
    no_user = tokenizer.convert_tokens_to_ids(_USER) in (None, tokenizer.unk_token_id)
    folders = PurePath(tokenizer.name_or_path or "").parts
    if len(folders) > 2 and folders[-2] == "snapshots":  # in the hub's cache, below the name
        folders = folders[:-2]
    named_first = bool(folders) and _FIRST_JANUS in folders[-1].lower()
    first = no_user or sft_format == _OLD_SFT_FORMAT or named_first
    user, assistant = ("User", "Assistant") if first else (_USER, _ASSISTANT)
    return f"{{% for message in messages %}}{user}: {{{{ message['content'] }}}}\n\n{{% endfor %}}{assistant}:"


def _framed_pieces(words: str, tokenizer: PreTrainedTokenizerBase, before: str = "", after: str = "") -> list[str]:
    """Puts the chat template around the words, in pieces to be tokenized one by one."""
    start, end = around_words(tokenizer, tokenizer.chat_template or _chat_template(tokenizer))
    first, *others = spelled_out(words.strip(), tokenizer, _FRAMING_TOKENS)
    pieces = [start + before + first, *others]
    pieces[-1] += end + after
    return pieces
