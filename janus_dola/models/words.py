"""Checks words and finds special tokens, for every family that turns words into token ids."""

import re
from collections.abc import Iterator, Set
from itertools import pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from janus_dola.arguments import hint_at_locale
from janus_dola.models.checkpoint.reading import read_json

# By tokenizer, as long as it lives; then by its number of tokens and what frames.
_patterns = WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, frozenset[str]], re.Pattern[str]]]()
_MARK = "\ue000"  # stands for the words while a template is rendered
_MOST_CHARACTERS = 200_000  # far more than any model has room for, and tokenized in a second


def check_words(name: str, words: str) -> None:
    """Raises ValueError where words are no valid Unicode or far too long."""
    if len(words) > _MOST_CHARACTERS:
        raise ValueError(f"{name} must have at most {_MOST_CHARACTERS} characters each, got one of {len(words)}")
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be valid Unicode, got {words[:40]!a}{hint_at_locale()}") from None


def spelled_out(words: str, tokenizer: PreTrainedTokenizerBase, framing: Set[str] = frozenset()) -> Iterator[str]:
    """Cuts words after the first character of each special token in them, so that it is tokenized as plain text.

    The tokens in `framing` are cut, too, where the tokenizer has them. All pieces together are the words.
    """
    names = _special_names(tokenizer, frozenset(framing))
    cuts = [0, *(match.start() + 1 for match in names.finditer(words)), len(words)]
    return (words[start:end] for start, end in pairwise(cuts))


def _special_names(tokenizer: PreTrainedTokenizerBase, framing: frozenset[str]) -> re.Pattern[str]:
    """Returns a pattern that matches where a special token begins; it is compiled anew when the tokenizer gets tokens."""
    known = _patterns.setdefault(tokenizer, {})
    key = len(tokenizer), framing
    if key not in known:
        known[key] = _compiled(tokenizer, framing)
    return known[key]


def _compiled(tokenizer: PreTrainedTokenizerBase, framing: frozenset[str]) -> re.Pattern[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted(special | (framing & tokenizer.get_vocab().keys()))
    return re.compile(f"(?={'|'.join(map(re.escape, names))})" if names else "(?!)")


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Returns a special token's id; one that the tokenizer does not have is a ValueError."""
    number = tokenizer.get_vocab().get(token)
    if number is None:
        raise ValueError(f"tokenizer must have the special token {token!r}; is it the tokenizer of this model?")
    return number


def named_token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """Returns the id that the tokenizer gives to a named token, such as `bos_token`; none is a ValueError."""
    number = getattr(tokenizer, f"{name}_id", None)
    if number is None:
        raise ValueError(f"tokenizer must have a {name}; is it the tokenizer of this model?")
    return number


def around_words(tokenizer: PreTrainedTokenizerBase, template: str, answers: bool = True) -> tuple[str, str]:
    """Returns what a chat template writes before and after a user's words: a string for some templates, or in a list.

    With `answers` the model's answer begins behind them. A template that does not print them once is a ValueError.
    """
    fault: object = "a text without them"
    content: Any
    for content in (_MARK, [{"type": "text", "text": _MARK}]):
        chat = [{"role": "user", "content": content}]
        try:
            text = tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=answers, tokenize=False
            )
        except Exception as error:  # whatever a template does
            fault = " ".join(str(error).split())
            continue
        if text.count(_MARK) == 1:
            before, after = text.split(_MARK)
            return before, after
    raise ValueError(f"tokenizer must have a chat template that prints the words of a user once, got {fault}")


def settings_beside(tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, Any]:
    """Reads a JSON file from the folder that a tokenizer was loaded from; returns {} where there is none."""
    folder = tokenizer.name_or_path
    return read_json(Path(folder, name)) if folder and Path(folder, name).is_file() else {}
