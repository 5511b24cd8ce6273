"""What a folder already holds: whose it is, what in it a run may replace, and which images of a run are done.

A run writes into a folder that is empty or that a run began, as its `run.json` shows. With `--overwrite` it takes others,
too, and deletes there what runs made: files that a manifest names with the digest that they still have. The lines of the
manifest (an image that was drawn, one that failed, a malformed prompt) are made here, where they are also compared.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from janus_dola.batch.files import (
    MANIFEST,
    RUN_FILE,
    WORK,
    Entry,
    Manifest,
    RunFile,
    clear_disk_errors,
    digest,
    file_digest,
    is_manifest,
)
from janus_dola.batch.page import DATA, PAGE, is_of_page
from janus_dola.batch.records import BadRecord, Numbered
from janus_dola.batch.settings import RunSettings, Task
from janus_dola.batch.worker import Drawn, Failed
from janus_dola.images.files import TEMPLATE, file_name

MAPS = "maps"  # the folder of the layer maps
_WRITTEN = (WORK, MAPS, MANIFEST, PAGE, DATA, RUN_FILE)  # besides images, of which a link is replaced by the image


def names_of(task: Task, settings: RunSettings) -> tuple[str, str | None]:
    """Where an image and its layer map lie in the folder; there is no map without DoLa."""
    fields = {
        "words": task.prompt,
        "id": task.index if task.id is None else task.id,
        "index": task.index,
        "k": task.k,
        "number": task.number,
        "seed": task.seed,
    }
    name = file_name(fields, settings.image_format, settings.name_template or TEMPLATE)
    return name, f"{MAPS}/{Path(name).stem}.png" if task.drawing.dola is not None else None


def entry_of(task: Task) -> Entry:
    """What the line of an image says whether it was drawn or not."""
    return {
        "image": task.number,
        "index": task.index,
        "k": task.k,
        "id": task.id,
        "prompt": task.prompt,
        "seed": task.seed,
        "settings": task.drawing.named(),
        **({"extra": task.extra} if task.extra else {}),
    }


def drawn_entry(task: Task, drawn: Drawn, settings: RunSettings) -> Entry:
    """The line of an image that was drawn; JSD in nats."""
    name, its_map = names_of(task, settings)
    return {
        "file": name,
        "map": its_map if drawn.layer_map is not None else None,
        **entry_of(task),
        "mean_jsd": drawn.mean_jsd,
        "max_jsd": drawn.max_jsd,
        "layers": {str(layer): count for layer, count in drawn.layers.items()},
        "seconds": drawn.seconds,
        "digest": digest(drawn.content),
        "map_digest": digest(drawn.layer_map) if drawn.layer_map is not None else None,
    }


def failed_entry(task: Task, failed: Failed) -> Entry:
    """The line of an image that could not be drawn."""
    return {"file": None, **entry_of(task), "error": failed.error}


def bad_entry(number: int, record: BadRecord) -> Entry:
    """The line of a malformed prompt, under the number that its first image would have had."""
    return {"file": None, "image": number, "index": record.index, "k": None, "prompt": None, "error": record.reason}


def look_into(outdir: Path, overwrite: bool) -> RunFile | None:
    """What the run that began a folder had; None where there was no run. Writes nothing.

    Raises:
        ValueError: the folder holds what is not provably of a run, or a link in place of what a run writes; or, with
            `overwrite`, what would be in the way.
        OutDirError: it cannot be read.
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
        in_the_way = [name for name in (PAGE, DATA) if os.path.lexists(outdir / name) and not is_of_page(outdir / name)]
        if before is None and os.path.lexists(outdir / MANIFEST) and not is_manifest(outdir / MANIFEST):
            in_the_way.append(MANIFEST)
        if in_the_way:
            raise ValueError(
                f"outdir {outdir} holds a file {in_the_way[0]} that is not as a run wrote it. "
                "Move it away, or take another --outdir"
            )
        return before


def replaceable(outdir: Path, manifest: Manifest, wanted: Iterable[str]) -> list[str]:
    """The files that the manifest names and that nobody changed since, by name.

    Args:
        wanted: names of the files that a new run will write.
    Raises:
        ValueError: one of those is there and not of a run.
    """
    ours = dict.fromkeys(name for entry in manifest for name in unchanged(outdir, entry))
    theirs = next((name for name in wanted if name not in ours and os.path.lexists(outdir / name)), None)
    if theirs is not None:
        raise ValueError(
            f"outdir {outdir} holds a file {theirs} that is not as an earlier run wrote it, and this run would write one. "
            "Move it away, or take another --outdir"
        )
    return list(ours)


def unchanged(outdir: Path, entry: Entry) -> Iterator[str]:
    """The files of a line of the manifest, image and map, that still have the digest that it gives."""
    for kind, its_digest in (("file", "digest"), ("map", "map_digest")):
        name = entry.get(kind)
        if name and file_digest(outdir / name) == entry[its_digest]:
            yield name


MISSING, DONE, FAILED = 0, 1, 2  # states of an image
_CHECKED_AT_ONCE = 512


def states_of(
    outdir: Path,
    manifest: Manifest,
    numbered: Iterable[Numbered],
    settings: RunSettings,
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


def _same(entry: Entry, task: Task | None, settings: RunSettings) -> bool:
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


def _is_whole(outdir: Path, entry: Entry, task: Task, settings: RunSettings) -> bool:
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
