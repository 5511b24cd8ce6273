"""Reads a checkpoint's files; what is wrong with one is said in one line that names it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MOST_JSON_BYTES = 64 * 2**20  # a tokenizer.json has 10 MB
_LONGEST_REASON = 240


class UnreadableModelError(ValueError):
    """A file in a checkpoint is damaged, or is not what its name says."""


@contextmanager
def reading(path: Path, fault: str = "cannot be read") -> Iterator[None]:
    """Turns what goes wrong with a file into an UnreadableModelError: `<path> <fault>: <reason>`."""
    try:
        yield
    except (UnreadableModelError, ImportError, MemoryError):
        raise
    except Exception as error:  # whatever torch, safetensors, tokenizers and transformers raise
        raise UnreadableModelError(f"{path} {fault}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Returns what an error says, in one line."""
    said = " ".join(str(error).split())
    if len(said) > _LONGEST_REASON:
        said = f"{said[:_LONGEST_REASON]}..."
    # "'hidden_size'" alone says little.
    plain = said and not isinstance(error, LookupError | TypeError | AttributeError | AssertionError)
    return said if plain else f"{type(error).__name__} {said}".strip()


def check_content(path: Path) -> None:
    """Raises UnreadableModelError where a file is missing, no file, empty, a Git LFS pointer or an HTML page."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise UnreadableModelError(f"{path} is no file")
    with reading(path), path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise UnreadableModelError(f"{path} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise UnreadableModelError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in its folder")
    if start.startswith((b"<!doctype html", b"<html")):
        raise UnreadableModelError(f"{path} is an HTML page, not the file itself: download it again")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds; anything else, or more than 64 MiB, is an UnreadableModelError."""
    check_content(path)
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise UnreadableModelError(f"{path} must have at most {_MOST_JSON_BYTES} bytes, got {path.stat().st_size}")
    with reading(path, "is not JSON"):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UnreadableModelError(f"{path} must hold a JSON object, got a {type(content).__name__}")
    return content
