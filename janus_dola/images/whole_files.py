"""Writes files whole or not at all: whatever fails or ends the process, a name stands for the old file or the new one."""

import errno
import os
import secrets
import stat
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

# errno values that mean "not supported" on network and FUSE file systems
NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF}
_NO_LINKS = NOT_SUPPORTED | {errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV}  # of FAT, for one


def write_whole(
    path: Path, content: bytes | Iterable[bytes], overwrite: bool = True, partial: Path | None = None
) -> None:
    """Writes a file; after `sync_folder` it lasts through a loss of power, too.

    The new file has the owner and mode of the one it replaces, or those of any new file. A link is replaced, not followed; a
    pipe or a device is written to. Until everything is on disk, it lies in the folder `partial`, on the same disk, or
    beside its place under a hidden name.

    Raises:
        FileExistsError: something is there and `overwrite` is not set, whoever made it in the meantime.
        OSError: the disk refuses; it has the name of the file, whose old content is untouched.
    """
    hidden = (partial or path.parent) / f".{secrets.token_hex(8)}"
    pieces = [content] if isinstance(content, bytes) else content
    try:
        there = os.lstat(path) if overwrite and os.path.lexists(path) else None
        if there is not None and (stat.S_ISFIFO(there.st_mode) or stat.S_ISCHR(there.st_mode)):
            with path.open("wb") as file:
                file.writelines(pieces)
            return
        try:
            with hidden.open("xb") as file:
                if there is not None and stat.S_ISREG(there.st_mode):
                    _take_owner_and_mode(hidden, there)
                file.writelines(pieces)
                file.flush()
                sync(file.fileno())
            if overwrite:
                os.replace(hidden, path)
            else:
                _place(hidden, path)
        finally:
            with suppress(OSError):  # it has its place now, or never was
                hidden.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _take_owner_and_mode(path: Path, other: os.stat_result) -> None:
    """Gives a file the owner, as far as this process may, and the mode of another."""
    own = path.stat()
    if hasattr(os, "chown") and (own.st_uid, own.st_gid) != (other.st_uid, other.st_gid):
        with suppress(OSError):
            os.chown(path, other.st_uid, other.st_gid)
    path.chmod(stat.S_IMODE(other.st_mode))


def _place(hidden: Path, path: Path) -> None:
    """Gives a file a name that must be free; on a disk without hard links an empty file holds the name for a moment."""
    try:
        os.link(hidden, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.open("xb").close()
        try:
            os.replace(hidden, path)
        except BaseException:
            path.unlink()
            raise


def sync(handle: int) -> None:
    """Makes what was written to a file last through a loss of power, where the file system can do that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        warn_once(
            f"the file system of the outdir cannot make files last ({error.strerror}): after a loss of power "
            "some may be missing"
        )


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last through a loss of power; Windows has nothing for that."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync(handle)
        finally:
            os.close(handle)


@cache
def warn_once(message: str) -> None:
    """Warns of something, the first time only."""
    warnings.warn(message, stacklevel=3)
