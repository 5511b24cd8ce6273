"""GenEval's files: prompts in, images in the folders that its own scorer reads.

    <folder>/00000/metadata.jsonl       the prompt's line of evaluation_metadata.jsonl
    <folder>/00000/samples/00000.png    its images
    <folder>/recipe.json                how they were drawn; the scorer looks at folders with numbers for names only

GenEval: Ghosh, Hajishirzi and Schmidt, NeurIPS 2023, https://github.com/djghosh13/geneval
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from janus_dola.batch.formats import parse_json, shown
from janus_dola.image_files import Recipe, save_image


def read_metadata(path: Path) -> list[dict[str, Any]]:
    """The entries of an `evaluation_metadata.jsonl`: one JSON object a line, with "tag", "include" and "prompt".

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
        wanted = {"tag": str, "include": list, "prompt": str}
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in wanted.items()):
            raise ValueError(f"prompt file {path} {expected}; line {number} is {shown(line)}")
        try:
            entry["prompt"].encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"prompt file {path} must be valid Unicode; line {number} is {shown(line)}") from None
        entries.append(entry)
    if not entries:
        raise ValueError(f"prompt file {path} {expected}, but is empty")
    return entries


def write_image(folder: Path, index: int, metadata: dict[str, Any], k: int, image: Image.Image, recipe: Recipe) -> None:
    """Writes image k of prompt `index` where GenEval's scorer finds it, and the prompt's metadata with the first one."""
    prompt = folder / f"{index:05}"
    (prompt / "samples").mkdir(parents=True, exist_ok=True)
    if k == 0:
        (prompt / "metadata.jsonl").write_text(json.dumps(metadata), encoding="utf-8")
    save_image(image, prompt / "samples" / f"{k:05}.png", recipe)
