"""GenEval's prompts, read from its file. `janus_dola.evaluate.geneval` says where its scorer looks for images."""

from pathlib import Path
from typing import Any

from janus_dola.batch.readers import parse_json, shown
from janus_dola.evaluate.geneval import KEYS


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """Reads an `evaluation_metadata.jsonl`: one JSON object per line, with "tag", "include" and "prompt".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is something else.
    """
    expected = 'must hold one {"tag": ..., "include": [...], "prompt": ...} a line'
    entries = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {path} {expected}, but is not text: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise ValueError(f"prompt file {path} {expected}; line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in KEYS.items()):
            raise ValueError(f"prompt file {path} {expected}; line {number} is {shown(line)}")
        try:
            entry["prompt"].encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"prompt file {path} must be valid Unicode; line {number} is {shown(line)}") from None
        entries.append(entry)
    if not entries:
        raise ValueError(f"prompt file {path} {expected}, but is empty")
    return entries
