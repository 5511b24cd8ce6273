"""What a folder already holds of a run, and whether it is of the same run."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from janus_dola.batch.entries import Entry, entry_of, names_of
from janus_dola.batch.manifest import Manifest
from janus_dola.batch.ownership import unchanged
from janus_dola.batch.records import Numbered
from janus_dola.batch.settings import Settings, Task

MISSING, DONE, FAILED = 0, 1, 2  # states of an image
_CHECKED_AT_ONCE = 512


def states_of(
    outdir: Path,
    manifest: Manifest,
    numbered: Iterable[Numbered],
    settings: Settings,
    images: int,
    overwrite: bool,
    checked: Callable[[int], object],
) -> bytearray:
    """The state of each image of a run: MISSING, DONE or FAILED.

    An image is done when the manifest has its line, and its file and its map have the digests that stand there. What a line
    says of the prompt itself, its id and other keys, is brought up to date.

    Args:
        settings: of the run, with the dtype known.
        images: how many numbers the run has.
        overwrite: images of other prompts are deleted instead of refused.
        checked: is told how many lines were looked at.
    Raises:
        ValueError: an image in the folder was drawn from another prompt, seed or settings than now asked for.
    """
    states = bytearray(images)
    stale: list[int] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        pairs = _lines_and_tasks(manifest, numbered)
        while part := list(islice(pairs, _CHECKED_AT_ONCE)):
            same, other = [], []
            for number, entry, task in part:
                if _same(entry, task, settings):
                    same.append((number, entry, task))
                else:
                    other.append((number, entry))
            if other and not overwrite:
                _refuse(outdir, *other[0])
            stale += [number for number, _ in other]
            drawn = [(number, entry, task) for number, entry, task in same if entry.get("file") and task]
            whole = threads.map(lambda found: _is_whole(outdir, found[1], found[2], settings), drawn)
            for (number, _, _), ok in zip(drawn, whole, strict=True):
                states[number] = DONE if ok else MISSING
            for number, entry, _ in same:
                if entry.get("error"):
                    states[number] = FAILED
            now = ((entry, _up_to_date(entry, task)) for _, entry, task in same if task is not None)
            manifest.append([line for entry, line in now if line != entry])
            checked(len(part))
    if overwrite:
        gone = [*stale, *manifest.beyond()]
        names = (name for number in gone for name in unchanged(outdir, manifest.get(number) or {}))
        delete(outdir, manifest, names, gone)
    return states


def _lines_and_tasks(manifest: Manifest, numbered: Iterable[Numbered]) -> Iterator[tuple[int, Entry, Task | None]]:
    tasks: Sequence[Task | None]
    for first, _, tasks in numbered:
        for task in tasks or (None,):
            number = first if task is None else task.number
            entry = manifest.get(number)
            if entry is not None:
                yield number, entry, task


def _same(entry: Entry, task: Task | None, settings: Settings) -> bool:
    """Whether a line is of this image. A line without an image, of a record that was bad, is of whatever is there now."""
    if entry.get("k") is None:
        return True
    if task is None or entry.get("file") not in (None, names_of(task, settings)[0]):  # of another id, by a template
        return False
    return all(entry.get(key) == value for key, value in entry_of(task).items() if key != "id")


def _refuse(outdir: Path, number: int, entry: Entry) -> None:
    raise ValueError(
        f"outdir {outdir} must hold images of the same prompts, but image {number} there was drawn from "
        f"{str(entry.get('prompt'))[:60]!r} with seed {entry.get('seed')} and {entry.get('settings')}. "
        "Take another --outdir, or --overwrite what is there"
    )


def _up_to_date(entry: Entry, task: Task) -> Entry:
    if entry.get("k") is None:  # of a record that was bad
        return entry
    return {key: value for key, value in entry.items() if key != "extra"} | entry_of(task)


def _is_whole(outdir: Path, entry: Entry, task: Task, settings: Settings) -> bool:
    names = [name for name in names_of(task, settings) if name is not None]
    return list(unchanged(outdir, entry)) == names


def delete(outdir: Path, manifest: Manifest, names: Iterable[str], numbers: Sequence[int]) -> None:
    """Deletes files, and the lines of images from the manifest."""
    for name in names:
        (outdir / name).unlink(missing_ok=True)
    for number in numbers:
        manifest.forget(number)
    if numbers:
        manifest.compact()
