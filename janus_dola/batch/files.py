"""What a run keeps in its folder, so that nothing is half there and every change shows.

Files are whole or not there, and one run writes to a folder at a time. By digests (BLAKE2b of 16 bytes, in hexadecimal) a
run tells what it wrote itself and nobody changed since. `run.json` is what a folder was begun with, and makes it that of a
run. `manifest.jsonl` has one line for each image, with how it was drawn or why not.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from janus_dola.batch.settings import RunSettings

WORK = ".janus-dola"  # the folder in a folder that a run keeps for itself
LOCK = f"{WORK}/lock"
PARTIAL = f"{WORK}/partial"  # where files lie until they are whole
# What network and user-space file systems say to a request that they do not serve.
_NOT_SERVED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}


class OutDirError(OSError):
    """The folder for the images cannot be written to."""


@contextmanager
def locked_folder(outdir: Path) -> Iterator[None]:
    """Makes a folder ready for one run, and keeps other runs out until that run ends, however it ends.

    Raises:
        ValueError: another run is at work there.
        OutDirError: the folder cannot be made or written to.
    """
    with clear_disk_errors(outdir):
        outdir.mkdir(parents=True, exist_ok=True)
        (outdir / WORK).mkdir(exist_ok=True)
        lock = FileLock(outdir / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"outdir {outdir} must be free, but another run is writing to it") from None
        except OSError as error:
            if error.errno not in _NOT_SERVED:
                raise
            _warn_once(f"{outdir} has no locks ({error.strerror}): see to it that no other run writes there")
    try:
        with clear_disk_errors(outdir):
            shutil.rmtree(outdir / PARTIAL, ignore_errors=True)  # of a run that was killed
            (outdir / PARTIAL).mkdir(exist_ok=True)
        yield
    finally:
        shutil.rmtree(outdir / PARTIAL, ignore_errors=True)
        lock.release()


@contextmanager
def clear_disk_errors(outdir: Path) -> Iterator[None]:
    """Turns whatever the disk refuses into one clear line."""
    try:
        yield
    except OutDirError:
        raise
    except OSError as error:
        raise OutDirError(
            f"cannot write to {error.filename or outdir}: {error.strerror or error}. "
            "What is there is whole; the same command goes on from it"
        ) from error


def write_whole(outdir: Path, name: str, content: bytes | Iterable[bytes]) -> None:
    """Writes a file of the folder, so that it is there with all of its content or not at all, whatever happens.

    It lasts through a loss of power once `sync_folder` was called for the folder it is in.
    """
    partial = outdir / PARTIAL / Path(name).name
    with partial.open("wb") as file:
        for piece in [content] if isinstance(content, bytes) else content:
            file.write(piece)
        file.flush()
        sync(file.fileno())
    os.replace(partial, outdir / name)


def sync(handle: int) -> None:
    """Makes what was written to a file last through a loss of power, where the file system can do that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_SERVED:
            raise
        _warn_once(
            f"the file system of the outdir cannot make files last ({error.strerror}): after a loss of power, "
            "the same command draws again what is missing"
        )


def sync_folder(folder: Path) -> None:
    """The same for the names in a folder; some systems have nothing for that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


_OWN = "checksum"  # the key under which an object of JSON holds the digest of its other keys
_BYTES = 16
_CHUNK = 2**20


def digest(content: bytes) -> str:
    """Of some bytes; `b2sum -l 128` gives the same."""
    return hashlib.blake2b(content, digest_size=_BYTES).hexdigest()


def file_digest(path: Path) -> str | None:
    """Of a file; None where there is none that can be read."""
    found = hashlib.blake2b(digest_size=_BYTES)
    try:
        if not path.is_file():  # a pipe would wait
            return None
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                found.update(piece)
    except OSError:
        return None
    return found.hexdigest()


def with_checksum(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, and a digest of them in the place of an older one."""
    others = {key: value for key, value in fields.items() if key != _OWN}
    return {**others, _OWN: _checksum(others)}


def checked(text: bytes) -> dict[str, Any] | None:
    """The fields of an object of JSON that `with_checksum` made; None for anything else, an edited one too."""
    try:
        fields = json.loads(text)
        return fields if isinstance(fields, dict) and fields.pop(_OWN) == _checksum(fields) else None
    except (ValueError, KeyError, RecursionError):
        return None


def _checksum(fields: dict[str, Any]) -> str:
    return digest(json.dumps(fields, ensure_ascii=False, sort_keys=True).encode("utf-8"))


MANIFEST = "manifest.jsonl"
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
        self._outdir, self._path, self._images = outdir, outdir / MANIFEST, images
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
        write_whole(self._outdir, MANIFEST, self._lines())
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


RUN_FILE = "run.json"
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class RunFile:
    """The settings a folder was begun with, and how many images are drawn at once.

    A batch is part of what decides an image's last bit, so a run that goes on draws the same batches.
    """

    settings: dict[str, Any]  # as `RunSettings.named` gives them
    batch_size: int

    @classmethod
    def read(cls, outdir: Path) -> "RunFile | None":
        """That of a folder, if there is one.

        Raises:
            ValueError: it is not as a run wrote it.
        """
        path = outdir / RUN_FILE
        if not path.exists():
            return None
        found = None
        if path.is_file():
            with path.open("rb") as file:
                found = checked(file.read(_MAX_BYTES))
        if found is None:
            raise ValueError(
                f"{path} must be as a run wrote it, but was edited or damaged, or comes from elsewhere or from a version "
                "without checksums. Take another --outdir"
            )
        return cls(found["settings"], found["batch_size"])

    def write(self, outdir: Path) -> None:
        """Keeps it in a folder."""
        fields = with_checksum({"settings": self.settings, "batch_size": self.batch_size})
        write_whole(outdir, RUN_FILE, json.dumps(fields, indent=1, ensure_ascii=False).encode("utf-8") + b"\n")
        sync_folder(outdir)

    def differences(self, settings: RunSettings) -> list[str]:
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
