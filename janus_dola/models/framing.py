"""What frames the words of an image prompt: the special tokens of Janus, and the chat template of a checkpoint."""

from pathlib import Path, PurePath
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from janus_dola.models.parts import BEGIN_OF_IMAGE, SpecialTokens, named_token_id, token_id
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
