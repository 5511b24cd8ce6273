"""Lays out a batch run's images in the folders that GenEval's own scorer reads.

    <folder>/00000/metadata.jsonl       the prompt's line in evaluation_metadata.jsonl
    <folder>/00000/samples/00000.png    the prompt's images

GenEval: Ghosh, Hajishirzi and Schmidt, NeurIPS 2023, https://github.com/djghosh13/geneval
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dola.batch.folder import checked
from janus_dola.batch.manifest import MANIFEST, Entry
from janus_dola.batch.resume import unchanged

KEYS = {"tag": str, "include": list, "prompt": str}  # in a line of evaluation_metadata.jsonl


def place_for(folder: Path, index: int, k: int, metadata: Mapping[str, Any]) -> Path:
    """Returns the path where the scorer looks for image k of prompt `index`; makes its folder, and writes the metadata.

    Args:
        metadata: has the `KEYS`.
    """
    prompt_folder = folder / f"{index:05}"
    (prompt_folder / "samples").mkdir(parents=True, exist_ok=True)
    if k == 0:
        (prompt_folder / "metadata.jsonl").write_text(json.dumps(metadata), encoding="utf-8")
    return prompt_folder / "samples" / f"{k:05}.png"


@dataclass(frozen=True)
class LaidOut:
    """What `lay_out` did."""

    prompts: int
    images: int
    missing: int  # images that failed, or whose files are not as the run wrote them


def lay_out(outdir: Path, folder: Path) -> LaidOut:
    """Copies a batch run's images, with the recipe that each carries, to where GenEval's scorer looks for them.

    Args:
        outdir: the folder of a run that drew GenEval's prompts with the format png.
        folder: must be empty or not there.
    Raises:
        OSError: `outdir` holds no manifest, or `folder` cannot be written to.
        ValueError: the run drew other prompts or another format, or `folder` is not empty; nothing is written then.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"outdir {folder} must be empty, got {next(folder.iterdir()).name!r} in it")
    with (outdir / MANIFEST).open("rb") as file:
        entries = {entry["image"]: entry for line in file if (entry := checked(line)) is not None}
    for entry in entries.values():
        _check(outdir, entry)
    prompts, images = set[int](), 0
    for entry in entries.values():
        if entry["file"] in unchanged(outdir, entry):
            metadata = {**entry["extra"], "prompt": entry["prompt"]}
            shutil.copyfile(outdir / entry["file"], place_for(folder, entry["index"], entry["k"], metadata))
            prompts.add(entry["index"])
            images += 1
    return LaidOut(len(prompts), images, len(entries) - images)


def _check(outdir: Path, entry: Entry) -> None:
    metadata = {**entry.get("extra", {}), "prompt": entry.get("prompt")}
    if not all(isinstance(metadata.get(key), kind) for key, kind in KEYS.items()):
        raise ValueError(
            f"folder {outdir} must hold a batch run of GenEval's evaluation_metadata.jsonl, but prompt {entry['index']} "
            f"has no tag and include"
        )
    ending = os.path.splitext(entry["file"] or ".png")[1]
    if ending != ".png":
        raise ValueError(f"folder {outdir} must hold images of the format png, which GenEval reads, got {ending[1:]}")
