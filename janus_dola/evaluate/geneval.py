"""Lays out a batch run's images in the folders that GenEval's own scorer reads.

    <folder>/00000/metadata.jsonl       the prompt's line in evaluation_metadata.jsonl
    <folder>/00000/samples/00000.png    the prompt's images

GenEval: Ghosh, Hajishirzi and Schmidt, NeurIPS 2023, https://github.com/djghosh13/geneval
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dola.batch.folder import checked
from janus_dola.batch.manifest import MANIFEST, Entry
from janus_dola.batch.resume import unchanged
from janus_dola.images.whole_files import write_whole

KEYS = {"tag": str, "include": list, "prompt": str}  # in a line of evaluation_metadata.jsonl


def place_for(folder: Path, index: int, k: int, metadata: Mapping[str, Any]) -> Path:
    """Returns where the scorer looks for image k of prompt `index`; writes metadata, with the `KEYS`, into its folder."""
    prompt_folder = folder / f"{index:05}"
    (prompt_folder / "samples").mkdir(parents=True, exist_ok=True)
    if k == 0:
        write_whole(prompt_folder / "metadata.jsonl", json.dumps(metadata).encode())
    return prompt_folder / "samples" / f"{k:05}.png"


@dataclass(frozen=True)
class LaidOut:
    """What `lay_out` did."""

    prompts: int
    images: int
    missing: int  # images that failed, or whose files are not as the run wrote them


def lay_out(outdir: Path, folder: Path) -> LaidOut:
    """Copies a batch run's images, with the recipe that each carries, to where GenEval's scorer looks for them.

    Raises:
        OSError: `outdir` holds no manifest, or `folder` cannot be written to, which is empty then.
        ValueError: the run in `outdir` drew other prompts than GenEval's or another format than png, or `folder` is not
            empty; nothing is written then.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"outdir {folder} must be empty, got {next(folder.iterdir()).name!r} in it")
    with (outdir / MANIFEST).open("rb") as file:
        entries = {entry["image"]: entry for line in file if (entry := checked(line)) is not None}
    for entry in entries.values():
        _check(outdir, entry)
    copied = [entry for entry in entries.values() if entry["file"] in unchanged(outdir, entry)]
    try:
        for entry in copied:
            metadata = {**entry["extra"], "prompt": entry["prompt"]}
            content = (outdir / entry["file"]).read_bytes()
            write_whole(place_for(folder, entry["index"], entry["k"], metadata), content)
    except BaseException:  # a full disk, Ctrl-C
        for made in folder.glob("*"):
            shutil.rmtree(made)
        raise
    return LaidOut(len({entry["index"] for entry in copied}), len(copied), len(entries) - len(copied))


def _check(outdir: Path, entry: Entry) -> None:
    metadata = {**entry.get("extra", {}), "prompt": entry.get("prompt")}
    if not all(isinstance(metadata.get(key), kind) for key, kind in KEYS.items()):
        raise ValueError(
            f"folder {outdir} must hold a batch run of GenEval's evaluation_metadata.jsonl, but prompt {entry['index']} "
            f"has no tag and include"
        )
    ending = Path(entry["file"] or "failed.png").suffix
    if ending != ".png":
        raise ValueError(f"folder {outdir} must hold images of the format png, which GenEval reads, got {ending[1:]}")
