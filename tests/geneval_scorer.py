"""Walks the folders of images as GenEval's evaluation/evaluate_images.py does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path


def walk(images: Path) -> Iterator[tuple[int, dict, list[Path]]]:
    """Each prompt's index, metadata and images."""
    for folder in images.iterdir():
        if not folder.is_dir() or not folder.name.isdigit():
            continue
        with (folder / "metadata.jsonl").open() as file:
            metadata = json.load(file)
        names = sorted(path.name for path in (folder / "samples").iterdir() if re.match(r"\d+\.png", path.name))
        assert names == [f"{k:0>5}.png" for k in range(len(names))]
        assert folder.name == f"{int(folder.name):0>5}"
        yield int(folder.name), metadata, [folder / "samples" / name for name in names]
