"""`manifest.jsonl`: one line for each image, with how it was drawn or why not."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from janus_dola.batch.files import sync_folder, write_whole

NAME = "manifest.jsonl"
Entry = dict[str, Any]


class Manifest:
    """The lines of a folder's manifest, by the number of their image. Keeps 8 bytes an image in memory.

    A run appends. A number may come again, when an image that had failed was drawn later: its last line counts, and
    `compact` drops the others. A last line that was cut off when a run was killed is dropped on opening.

    Args:
        images: how many the run has; lines of others are kept, too.
    """

    def __init__(self, outdir: Path, images: int) -> None:
        self._outdir, self._images = outdir, images
        self._scan()

    def _scan(self) -> None:
        self._start = array("q", [-1]) * self._images  # where the line of each image starts
        self._beyond: dict[int, int] = {}
        path = self._outdir / NAME
        self._out = path.open("ab", buffering=0)
        self._in = path.open("rb")
        self._end = 0
        for line in self._in:
            if not line.endswith(b"\n"):
                os.truncate(path, self._end)
                break
            entry = _parsed(line)
            if entry is not None:
                self._note(entry["image"], self._end)
            self._end += len(line)

    def _note(self, number: int, start: int) -> None:
        if number < len(self._start):
            self._start[number] = start
        elif start >= 0:
            self._beyond[number] = start
        else:
            self._beyond.pop(number, None)

    def get(self, number: int) -> Entry | None:
        """The line of an image, where there is one."""
        start = self._start[number] if number < len(self._start) else self._beyond.get(number, -1)
        return _parsed(self._read(start)) if start >= 0 else None

    def beyond(self) -> list[int]:
        """The numbers of lines beyond the images of the run."""
        return sorted(self._beyond)

    def _read(self, start: int) -> bytes:
        self._in.seek(start)
        return self._in.readline()

    def __iter__(self) -> Iterator[Entry]:
        """The lines in the order of the images."""
        for line in self._lines():
            entry = _parsed(line)
            if entry is not None:
                yield entry

    def _lines(self) -> Iterator[bytes]:
        for start in self._start:
            if start >= 0:
                yield self._read(start)
        for number in self.beyond():
            yield self._read(self._beyond[number])

    def append(self, entries: Iterable[Entry]) -> None:
        """Adds lines, and returns when they are on disk."""
        lines = []
        for entry in entries:
            lines.append(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")
            self._note(entry["image"], self._end)
            self._end += len(lines[-1])
        content = memoryview(b"".join(lines))
        while content:  # not buffered, so that a full disk is noticed here and not on closing
            content = content[self._out.write(content) or 0 :]
        os.fsync(self._out.fileno())

    def forget(self, number: int) -> None:
        """Drops the line of an image from the next `compact`."""
        self._note(number, -1)

    def compact(self) -> None:
        """Rewrites the file: one line for each image, in order."""
        write_whole(self._outdir, NAME, self._lines())
        sync_folder(self._outdir)
        self.close()
        self._scan()

    def close(self) -> None:
        """Closes the file."""
        self._in.close()
        self._out.close()


def _parsed(line: bytes) -> Entry | None:
    """A line as it was written; None for anything else."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    number = entry.get("image") if isinstance(entry, dict) else None
    return entry if isinstance(number, int) and number >= 0 else None
