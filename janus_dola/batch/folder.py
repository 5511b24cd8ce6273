"""Keeps a run's folder sound: one run at a time, and a digest for each file, by which changes show."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from janus_dola.images.whole_files import NOT_SUPPORTED, warn_once

WORK = ".janus-dola"  # a run's own folder in its folder
LOCK = f"{WORK}/lock"
PARTIAL = f"{WORK}/partial"  # where files lie until they are whole; a run removes what a killed one left there
_CHECKSUM = "checksum"  # the key of a JSON object that holds the digest of its other keys
_DIGEST_BYTES = 16
_CHUNK = 2**20  # bytes


class OutDirError(OSError):
    """The folder for the images cannot be written to."""


@contextmanager
def locked_folder(outdir: Path) -> Iterator[None]:
    """Makes a folder ready for one run, and keeps other runs out, by a ValueError, until that run ends, however it ends."""
    with clear_disk_errors(outdir):
        outdir.mkdir(parents=True, exist_ok=True)
        (outdir / WORK).mkdir(exist_ok=True)
        lock = FileLock(outdir / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"outdir {outdir} must be free, but another run is writing to it") from None
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            warn_once(f"{outdir} has no locks ({error.strerror}): see to it that no other run writes there")
    try:
        with clear_disk_errors(outdir):
            shutil.rmtree(outdir / PARTIAL, ignore_errors=True)  # left by a run that was killed
            (outdir / PARTIAL).mkdir(exist_ok=True)
        yield
    finally:
        shutil.rmtree(outdir / PARTIAL, ignore_errors=True)
        lock.release()


@contextmanager
def clear_disk_errors(outdir: Path) -> Iterator[None]:
    """Turns whatever the disk refuses into one clear line, an OutDirError."""
    try:
        yield
    except OutDirError:
        raise
    except OSError as error:
        raise OutDirError(
            f"cannot write to {error.filename or outdir}: {error.strerror or error}. "
            "What is there is whole; the same command goes on from it"
        ) from error


def digest(content: bytes) -> str:
    """Returns the bytes' digest, BLAKE2b in hexadecimal; `b2sum -l 128` gives the same."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def file_digest(path: Path) -> str | None:
    """Returns a file's digest, or None if there is none that can be read."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        if not path.is_file():  # a pipe would wait
            return None
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                state.update(piece)
    except OSError:
        return None
    return state.hexdigest()


def with_checksum(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields with their digest, which replaces an older one."""
    others = {key: value for key, value in fields.items() if key != _CHECKSUM}
    text = json.dumps(others, ensure_ascii=False, sort_keys=True)
    return {**others, _CHECKSUM: digest(text.encode("utf-8"))}


def checked(text: bytes) -> dict[str, Any] | None:
    """Returns the fields that `with_checksum` gave a digest; None for any other JSON, also an edited one."""
    try:
        fields = json.loads(text)
        return (
            fields if isinstance(fields, dict) and fields.pop(_CHECKSUM) == with_checksum(fields)[_CHECKSUM] else None
        )
    except (ValueError, KeyError, RecursionError):
        return None
