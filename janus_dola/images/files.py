"""Files of images: their names, their formats; none is replaced unasked, and no link is followed."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from janus_dola.arguments import ImageFormat

STUB_LENGTH = 48


def file_name(index: int, prompt: str, k: int, image_format: ImageFormat = "jpg") -> str:
    """`{idx}_{prompt_stub}_p{k}.jpg`: safe for any prompt, of which it keeps letters and digits."""
    return f"{index}_{stub(prompt)}_p{k}.{image_format}"


def stub(text: str, length: int = STUB_LENGTH) -> str:
    """The letters and digits that a text begins with, at most so many; "image" where there are none."""
    return re.sub(r"\W+", "_", text[: 2 * length]).strip("_")[:length] or "image"


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Before anything is drawn for nothing.

    Args:
        overwrite: files may be there; links and folders may not.
    Raises:
        FileExistsError: a path is taken.
    """
    wanted = list(paths)
    links = [path for path in wanted if path.is_symlink()]
    if links:
        raise FileExistsError(f"{links[0]} is a link, which is not followed: move it away, or take another folder")
    folders = [path for path in wanted if path.is_dir()]
    if folders:
        raise FileExistsError(f"{folders[0]} is a folder, and an image would have its name: take another folder")
    there = [path for path in wanted if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(
            f"{there[0]}{more} would be replaced: take another folder, or overwrite what is there "
            "(--overwrite, overwrite=True)"
        )


def make_folder(outdir: Path) -> None:
    """Makes the folder for the images, if need be.

    Raises:
        ValueError: it cannot be made, or not be written to.
    """
    try:
        outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"outdir {outdir} must be a folder that can be made: {error.strerror}") from error
    if not os.access(outdir, os.W_OK):
        raise ValueError(f"outdir {outdir} must be a folder that can be written to")


def write_new(path: Path, content: bytes, overwrite: bool) -> None:
    """Writes a file.

    Raises:
        FileExistsError: it is there, and `overwrite` is false.
        OSError: it is a link, or the disk refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
    # Where a system has no O_NOFOLLOW or O_BINARY, they say nothing.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
