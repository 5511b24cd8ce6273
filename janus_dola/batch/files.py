"""Files that are whole or not there, and a folder that one run writes to at a time."""

import errno
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

WORK = ".janus-dola"  # the folder in a folder that a run keeps for itself
LOCK = f"{WORK}/lock"
PARTIAL = f"{WORK}/partial"  # where files lie until they are whole
# What network and user-space file systems say to a request that they do not serve.
_NOT_SERVED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}


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
        with telling(outdir):
            shutil.rmtree(outdir / PARTIAL, ignore_errors=True)  # of a run that was killed
            (outdir / PARTIAL).mkdir(exist_ok=True)
        yield
    finally:
        shutil.rmtree(outdir / PARTIAL, ignore_errors=True)
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
