"""`manifest.jsonl`: one line for each image, with how it was drawn or why not."""

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from janus_dola.batch.digests import checked, with_checksum
from janus_dola.batch.files import sync, sync_folder, write_whole

NAME = "manifest.jsonl"
Entry = dict[str, Any]


class Manifest:
    """The lines of a folder's manifest, by the number of their image. Keeps 8 bytes an image in memory.

    A run appends. A number may come again, when an image that had failed was drawn later: its last line counts, and
    `compact` drops the others. A last line that was cut off when a run was killed is dropped on opening. Lines that are not
    as a run wrote them, by their checksum, are as good as not there; `ignored` counts them.

    Args:
        images: how many the run has; lines of others are kept, too.
    """

    def __init__(self, outdir: Path, images: int) -> None:
        self._outdir, self._path, self._images = outdir, outdir / NAME, images
        self._scan()

    def _scan(self) -> None:
        self._start = array("q", [-1]) * self._images  # where the line of each image starts
        self._beyond: dict[int, int] = {}
        self._end = self.ignored = 0
        self._files: tuple[IO[bytes], IO[bytes]] | None = (
            None  # to append to and to read from; none before the first line
        )
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
        # Not buffered, so that a full disk is noticed on writing and not on closing.
        return self._path.open("ab", buffering=0), self._path.open("rb")

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
        return checked(self._read(start)) if start >= 0 else None

    def beyond(self) -> list[int]:
        """The numbers of lines beyond the images of the run."""
        return sorted(self._beyond)

    def _read(self, start: int) -> bytes:
        assert self._files is not None  # it has lines
        file = self._files[1]
        file.seek(start)
        return file.readline()

    def __iter__(self) -> Iterator[Entry]:
        """The lines in the order of the images."""
        for line in self._lines():
            entry = checked(line)
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
        for file in self._files or ():
            file.close()


def is_manifest(path: Path) -> bool:
    """Whether a file holds lines that runs wrote, and nothing else; the last one may be cut off."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return all(checked(line) is not None or not line.endswith(b"\n") for line in file)
