"""What a folder already holds: whose it is, what a run may replace in it, and which images of a run are done.

A run writes into a folder that is empty or that a run began, as its `run.json` shows. With `--overwrite` it takes others,
too, and deletes there what runs made: files that a manifest names with the digest that they still have.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from janus_dola.batch.folder import WORK, clear_disk_errors, file_digest
from janus_dola.batch.index_page import DATA, PAGE, is_of_page
from janus_dola.batch.manifest import MANIFEST, MAPS, Entry, Manifest, described, is_bad_entry, is_manifest, names_of
from janus_dola.batch.prompts import ImageTask, PromptRecord
from janus_dola.batch.run_settings import RUN_FILE, RunFile, RunSettings

MISSING, DONE, FAILED, OTHER = range(4)  # states of an image; OTHER was drawn from another prompt, seed or settings
# What a run writes besides images. It follows no link there; a link in an image's place is replaced by the image.
_WRITTEN = (WORK, MAPS, MANIFEST, PAGE, DATA, RUN_FILE)
_CHECKED_AT_ONCE = 512  # lines


def look_into(outdir: Path, overwrite: bool) -> RunFile | None:
    """Returns what the run that began a folder had, or None if there was no run. Writes nothing.

    A ValueError says that the folder holds what is not provably a run's, with `overwrite` only if it is in the way, or a
    link in place of what a run writes.
    """
    if not outdir.exists():
        return None
    with clear_disk_errors(outdir):
        link = next((name for name in _WRITTEN if (outdir / name).is_symlink()), None)
        if link is not None:
            raise ValueError(
                f"outdir {outdir} holds a link {link}, which is not followed. Move it away, or take another --outdir"
            )
        with os.scandir(outdir) as inside:
            other = next((entry.name for entry in inside if entry.name != WORK), None)
        before = RunFile.read(outdir)
        if before is None and other is not None and not overwrite:
            raise ValueError(
                f"outdir {outdir} must be empty or begun by an earlier run, but holds {other!r} and no run.json. "
                "Take another --outdir; --overwrite replaces what earlier runs made there, and leaves the rest"
            )
        checks = {PAGE: is_of_page, DATA: is_of_page, **({MANIFEST: is_manifest} if before is None else {})}
        for name, is_ours in checks.items():
            if os.path.lexists(outdir / name) and not is_ours(outdir / name):
                raise ValueError(
                    f"outdir {outdir} holds a file {name} that is not as a run wrote it. "
                    "Move it away, or take another --outdir"
                )
        return before


def unchanged(outdir: Path, entry: Entry) -> Iterator[str]:
    """Yields the files of a manifest's line, image and map, that still have the digest in the line."""
    for kind, digest_key in (("file", "digest"), ("map", "map_digest")):
        name = entry.get(kind)
        if name and file_digest(outdir / name) == entry[digest_key]:
            yield name


def take_inventory(
    outdir: Path,
    manifest: Manifest,
    records: Iterable[PromptRecord],
    settings: RunSettings,
    resumed: bool,
    overwrite: bool,
    note_checked: Callable[[int], object],
) -> tuple[bytearray, list[int], list[str]]:
    """Compares the manifest with the images of a run.

    An image is done when the manifest has its line, and its file and map have the digests that stand there. What a line says
    about the prompt, its id and other keys, is brought up to date.

    Args:
        settings: the run's, with the dtype known.
        resumed: whether the folder was begun with these settings; if not, no line is this run's.
        overwrite: whether images of other runs and prompts are to go; they are refused otherwise, as are foreign files.
        note_checked: is given the number of lines looked at.
    Returns:
        MISSING, DONE or FAILED per image; numbers of lines that are not this run's; and their files that nobody changed.
    """
    states, others = bytearray(manifest.images), []
    tasks = ((record, task) for record in records for task in record.tasks or (None,)) if resumed else ()
    numbered = ((record.first if task is None else task.number, task) for record, task in tasks)
    lines = ((number, entry, task) for number, task in numbered if (entry := manifest.get(number)) is not None)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        while part := list(islice(lines, _CHECKED_AT_ONCE)):
            updates = []
            checked_states = list(threads.map(lambda line: _state(outdir, line[1], line[2], settings), part))
            for (number, entry, task), state in zip(part, checked_states, strict=True):
                if state != OTHER:
                    states[number] = state
                    if task is not None and not is_bad_entry(entry):
                        updated = {**entry, "id": task.id, "extra": task.extra}
                        updates += [updated] if updated != entry else []
                elif overwrite:
                    others.append(number)
                else:
                    raise ValueError(
                        f"outdir {outdir} must hold images of the same prompts, but image {number} there was drawn from "
                        f"{str(entry.get('prompt'))[:60]!r} with seed {entry.get('seed')} and {entry.get('settings')}. "
                        "Take another --outdir, or --overwrite what is there"
                    )
            manifest.append(updates)
            note_checked(len(part))
    if overwrite:
        others = [*others, *manifest.beyond()] if resumed else [entry["image"] for entry in manifest]
    files = dict.fromkeys(name for number in others for name in unchanged(outdir, manifest.get(number) or {}))
    names = (name for record in records for task in record.tasks for name in names_of(task, settings) if name)
    foreign = (name for name in names if name not in files and os.path.lexists(outdir / name))
    if not resumed and (name := next(foreign, None)) is not None:
        raise ValueError(
            f"outdir {outdir} holds a file {name} that is not as an earlier run wrote it, and this run would write one. "
            "Move it away, or take another --outdir"
        )
    return states, others, list(files)


def _state(outdir: Path, entry: Entry, task: ImageTask | None, settings: RunSettings) -> int:
    if is_bad_entry(entry):  # stands for whatever is there now
        return FAILED
    if task is None:
        return OTHER
    current, names = {**described(task), "id": entry.get("id"), "extra": entry.get("extra")}, names_of(task, settings)
    # A template may have named another id's file.
    if entry.get("file") not in (None, names[0]) or any(entry.get(key) != value for key, value in current.items()):
        return OTHER
    if entry["file"] is None:
        return FAILED
    return DONE if list(unchanged(outdir, entry)) == [name for name in names if name is not None] else MISSING
