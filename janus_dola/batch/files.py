"""Files that are whole or not there, and a folder that one run writes to at a time."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PARTIAL = ".partial"  # where files lie until they are whole


class OutDirError(OSError):
    """The folder for the images cannot be written to."""


@contextmanager
def held(outdir: Path) -> Iterator[None]:
    """Makes a folder ready for one run, and keeps other runs out until that run ends, however it ends.

    Raises:
        ValueError: another run is at work there.
        OutDirError: the folder cannot be made or written to.
    """
    with telling(outdir):
        outdir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(outdir / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"outdir {outdir} must be free, but another run is writing to it") from None
    try:
        with telling(outdir):
            shutil.rmtree(outdir / _PARTIAL, ignore_errors=True)  # of a run that was killed
            (outdir / _PARTIAL).mkdir(exist_ok=True)
        yield
    finally:
        shutil.rmtree(outdir / _PARTIAL, ignore_errors=True)
        lock.release()


@contextmanager
def telling(outdir: Path) -> Iterator[None]:
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
    partial = outdir / _PARTIAL / Path(name).name
    with partial.open("wb") as file:
        for piece in [content] if isinstance(content, bytes) else content:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, outdir / name)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last; some systems have nothing for that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
