"""What a folder already holds of a run, and whether it is of the same run."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from janus_dola.batch.entries import Entry, entry_of, map_name
from janus_dola.batch.files import sync_folder, write_whole
from janus_dola.batch.manifest import Manifest
from janus_dola.batch.records import Numbered
from janus_dola.batch.settings import Settings, Task
from janus_dola.image_files import file_name, read_recipe

RUN_FILE = "run.json"
MISSING, DONE, FAILED = 0, 1, 2  # states of an image
_CHECKED_AT_ONCE = 512


@dataclass(frozen=True)
class RunFile:
    """What `run.json` keeps: the settings a folder was begun with, and how many images are drawn at once.

    A batch is part of what decides an image's last bit, so a run that goes on draws the same batches.
    """

    settings: dict[str, Any]  # as `Settings.named` gives them
    batch_size: int

    @classmethod
    def read(cls, outdir: Path) -> "RunFile | None":
        """That of a folder, if there is one.

        Raises:
            ValueError: it cannot be understood.
        """
        path = outdir / RUN_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = cls(dict(content["settings"]), int(content["batch_size"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must be what an earlier run wrote, got {error!r}") from None
        return found

    def write(self, outdir: Path) -> None:
        """Keeps it in a folder."""
        content = json.dumps({"settings": self.settings, "batch_size": self.batch_size}, indent=1, ensure_ascii=False)
        write_whole(outdir, RUN_FILE, content.encode("utf-8") + b"\n")
        sync_folder(outdir)

    def differences(self, settings: Settings) -> list[str]:
        """Which settings differ from these, in words; a dtype that is not given is the same."""
        now = settings.named()
        if settings.dtype is None:
            now["dtype"] = self.settings.get("dtype")
        names = sorted({*self.settings, *now}, key=[*now, *self.settings].index)
        return [
            f"{name} {self.settings.get(name)}, now {now.get(name)}"
            for name in names
            if self.settings.get(name) != now.get(name)
        ]


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

    An image is done when the manifest has its line, and its file opens as an image that carries the recipe of its task.

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
            same = [(number, entry, task) for number, entry, task in part if _same(entry, task)]
            other = [(number, entry) for number, entry, task in part if not _same(entry, task)]
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
            checked(len(part))
    if overwrite:
        _delete(outdir, manifest, [*stale, *manifest.beyond()])
    return states


def _lines_and_tasks(manifest: Manifest, numbered: Iterable[Numbered]) -> Iterator[tuple[int, Entry, Task | None]]:
    tasks: Sequence[Task | None]
    for first, _, tasks in numbered:
        for task in tasks or (None,):
            number = first if task is None else task.number
            entry = manifest.get(number)
            if entry is not None:
                yield number, entry, task


def _same(entry: Entry, task: Task | None) -> bool:
    """Whether a line is of this image. A line without an image, of a record that was bad, is of whatever is there now."""
    if entry.get("k") is None:
        return True
    return task is not None and all(entry.get(key) == value for key, value in entry_of(task).items() if key != "id")


def _refuse(outdir: Path, number: int, entry: Entry) -> None:
    raise ValueError(
        f"outdir {outdir} must hold images of the same prompts, but image {number} there was drawn from "
        f"{str(entry.get('prompt'))[:60]!r} with seed {entry.get('seed')} and {entry.get('settings')}. "
        "Take another --outdir, or --overwrite what is there"
    )


def _is_whole(outdir: Path, entry: Entry, task: Task, settings: Settings) -> bool:
    name = file_name(task.index, task.prompt, task.k, settings.image_format)
    maps = [map_name(name)] if entry.get("map") else []
    try:
        for path in (outdir / name, *(outdir / other for other in maps)):
            with Image.open(path) as image:
                image.load()
        return read_recipe(outdir / name) == task.recipe(settings)
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for files that are not whole
        return False


def forget_all(outdir: Path, manifest: Manifest) -> None:
    """Deletes all images that the manifest knows, and its lines."""
    _delete(outdir, manifest, [entry["image"] for entry in manifest])


def _delete(outdir: Path, manifest: Manifest, numbers: list[int]) -> None:
    for number in numbers:
        entry = manifest.get(number) or {}
        name = Path(str(entry.get("file") or "")).name  # never outside the folder
        if name:
            (outdir / name).unlink(missing_ok=True)
            (outdir / map_name(name)).unlink(missing_ok=True)
        manifest.forget(number)
    if numbers:
        manifest.compact()
