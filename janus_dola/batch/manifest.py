"""Keeps `manifest.jsonl`: a line per image, with how it was drawn or why not, and a line per bad prompt."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from janus_dola.batch.folder import PARTIAL, checked, digest, with_checksum
from janus_dola.batch.prompts import ImageTask, PromptRecord
from janus_dola.batch.run_settings import RunSettings
from janus_dola.batch.worker import EncodedImage
from janus_dola.images.files import TEMPLATE, file_name
from janus_dola.images.whole_files import sync, sync_folder, write_whole

MANIFEST = "manifest.jsonl"
MAPS = "maps"  # the folder for layer maps

Entry = dict[str, Any]


class Manifest:
    """A folder's manifest, with its lines by image number. Keeps 8 bytes per image in memory.

    A run appends. A number comes again when an image that had failed is drawn later: its last line counts, and `compact`
    drops the others. Opening drops a last line that was cut off when a run was killed. Lines that are not as a run wrote
    them, by their checksum, count as missing; `ignored` is their number. Lines beyond the run's `images` are kept.
    """

    def __init__(self, outdir: Path, images: int) -> None:
        self._outdir, self._path, self.images = outdir, outdir / MANIFEST, images
        self._scan()

    def _scan(self) -> None:
        self._start = array("q", [-1]) * self.images  # where the line of each image starts
        self._end = self.ignored = 0
        self._files: tuple[IO[bytes], IO[bytes]] | None = None  # to append to, to read from; None before the first line
        if not self._path.exists():
            return
        self._files = self._opened()
        for line in self._files[1]:
            if not line.endswith(b"\n"):
                os.truncate(self._path, self._end)
                break
            entry = checked(line)
            if entry is not None:
                self._note(entry["image"], self._end)
            self.ignored += entry is None
            self._end += len(line)

    def _opened(self) -> tuple[IO[bytes], IO[bytes]]:
        # Appends without a buffer, so that a full disk is noticed on writing and not on closing.
        return self._path.open("ab", buffering=0), self._path.open("rb")

    def _note(self, number: int, start: int) -> None:
        self._start.extend([-1] * (number + 1 - len(self._start)))
        self._start[number] = start

    def get(self, number: int) -> Entry | None:
        """Returns an image's line, if there is one."""
        start = self._start[number] if number < len(self._start) else -1
        return checked(self._read(start)) if start >= 0 else None

    def beyond(self) -> list[int]:
        """Returns the image numbers that the run does not have."""
        return [number for number in range(self.images, len(self._start)) if self._start[number] >= 0]

    def _read(self, start: int) -> bytes:
        assert self._files is not None  # there are lines
        self._files[1].seek(start)
        return self._files[1].readline()

    def __iter__(self) -> Iterator[Entry]:
        """Yields the lines, ordered by image number."""
        return (entry for line in self._lines() if (entry := checked(line)) is not None)

    def _lines(self) -> Iterator[bytes]:
        return (self._read(start) for start in self._start if start >= 0)

    def append(self, entries: Iterable[Entry]) -> None:
        """Adds lines, and returns when they are on disk."""
        lines = []
        for entry in entries:
            lines.append(json.dumps(with_checksum(entry), ensure_ascii=False).encode("utf-8") + b"\n")
            self._note(entry["image"], self._end)
            self._end += len(lines[-1])
        if not lines:
            return
        self._files = self._files or self._opened()
        out, content = self._files[0], memoryview(b"".join(lines))
        while content:
            content = content[out.write(content) or 0 :]
        sync(out.fileno())

    def forget(self, numbers: Iterable[int]) -> None:
        """Drops images' lines."""
        for number in numbers:
            self._note(number, -1)
        self.compact()

    def compact(self) -> None:
        """Rewrites the file: one line per image, in order."""
        write_whole(self._path, self._lines(), partial=self._outdir / PARTIAL)
        sync_folder(self._outdir)
        self.close()
        self._scan()

    def close(self) -> None:
        """Closes the file."""
        for file in self._files or ():
            file.close()


def is_manifest(path: Path) -> bool:
    """Returns whether a file holds lines that runs wrote, and nothing else; the last one may be cut off."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return all(checked(line) is not None or not line.endswith(b"\n") for line in file)


def names_of(task: ImageTask, settings: RunSettings) -> tuple[str, str | None]:
    """Returns where an image and its layer map lie in the folder; without a contrast there is no map."""
    fields = {name: getattr(task, name) for name in ("index", "k", "number", "seed")}
    fields |= {"words": task.prompt, "id": task.index if task.id is None else task.id}
    name = file_name(fields, settings.image_format, settings.name_template or TEMPLATE)
    return name, f"{MAPS}/{Path(name).stem}.png" if task.drawing.contrast is not None else None


def described(task: ImageTask) -> Entry:
    """Returns what a line says about an image whether it was drawn or not."""
    own = {name: getattr(task, name) for name in ("index", "k", "id", "prompt", "seed")}
    return {"image": task.number, **own, "settings": task.drawing.to_json(), "extra": task.extra}


def image_entry(task: ImageTask, image: EncodedImage | str, settings: RunSettings) -> Entry:
    """Returns the line for an image that was drawn, or for the reason why it could not be."""
    if isinstance(image, str):
        return {"file": None, **described(task), "error": image}
    name, map_name = names_of(task, settings)
    files, digests = {"file": name, "map": None}, {"digest": digest(image.content), "map_digest": None}
    if image.layer_map is not None:
        files["map"], digests["map_digest"] = map_name, digest(image.layer_map)
    return {**files, **described(task), **image.facts, **digests}


def bad_entry(record: PromptRecord) -> Entry:
    """Returns the line for a bad prompt, under the number that its first image would have."""
    place = {"image": record.first, "index": record.index}
    return {"file": None, **place, "k": None, "prompt": None, "error": record.fault}


def is_bad_entry(entry: Entry) -> bool:
    """Returns whether a line stands for a bad prompt."""
    return entry.get("k") is None
