"""Names image files, and writes them: nothing is replaced unless the user wants it, and no link is followed."""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from janus_dola.arguments import ImageFormat, hint_at_locale
from janus_dola.images.whole_files import write_whole

TEMPLATE = "{index}_{words}_p{k}"
FIELDS = ("words", "id", "index", "k", "number", "seed")
_TEXTS, _CHARACTERS = ("words", "id"), 48  # fields that share 48 characters
_FIELD = re.compile(r"\{([^{}]*)\}")
_BETWEEN = re.compile(r"[A-Za-z0-9_. -]{0,16}")  # with the longest fields a name has at most 255 bytes


def check_template(template: str) -> None:
    """Checks that a template for file names is a string with fields that exist, and with little text around them."""
    if not isinstance(template, str):
        raise ValueError(f"name_template must be None or a string, got {template!r}")
    fields, between = _FIELD.findall(template), _FIELD.sub("", template)
    unknown = next((name for name in fields if name not in FIELDS), None)
    if unknown is not None or len(set(fields)) < len(fields) or not fields:
        listed = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(f"name_template must hold some of {listed}, each once, got {template[:80]!r}")
    if not _BETWEEN.fullmatch(between) or template[0] in " .-":
        raise ValueError(
            "name_template must have at most 16 letters of ASCII, digits, '_', '-', '.' and blanks around its fields, "
            f"and begin with none of the last three, got {template[:80]!r}"
        )


def file_name(fields: Mapping[str, object], image_format: str, template: str = TEMPLATE, longest: int = 255) -> str:
    """Returns the file name that a template makes from an image's fields, safe for any prompt on any disk.

    From `words` (the prompt) and `id` it keeps letters and digits, and cuts `words` where the name has more than `longest`
    bytes. Fields that are not in `FIELDS` must fit a name as they are. A ValueError says that the locale lacks a letter.
    """
    room = _CHARACTERS // max(1, sum(f"{{{name}}}" in template for name in _TEXTS))
    values = {name: stub(str(value), room) if name in _TEXTS else str(value) for name, value in fields.items()}
    pattern = f"{template}.{image_format}"
    excess = len(pattern.format(**values).encode()) - longest
    if excess > 0:
        words = values["words"].encode()
        values["words"] = words[: max(0, len(words) - excess)].decode(errors="ignore")
    name = pattern.format(**values)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(f"the file name {name!a} cannot be written{hint_at_locale()}") from None
    return name


def name_beside(path: Path, more: str, image_format: ImageFormat) -> str:
    """Returns the name of a file that belongs to another: `{its name}_{more}.{format}`."""
    return f"{path.stem}_{more}.{image_format}"


def stub(text: str, length: int = _CHARACTERS) -> str:
    """Returns the letters and digits that a text begins with, `length` at most, or "image" if it has none."""
    return re.sub(r"\W+", "_", text[: 2 * length]).strip("_")[:length] or "image"


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises FileExistsError if a path is taken, so that nothing is drawn in vain; links and folders never may be there."""
    paths = list(paths)
    if link := next(filter(Path.is_symlink, paths), None):
        raise FileExistsError(f"{link} is a link, which is not followed: move it away, or take another folder")
    if folder := next(filter(Path.is_dir, paths), None):
        raise FileExistsError(f"{folder} is a folder, and an image would have its name: take another folder")
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(
            f"{there[0]}{more} would be replaced: take another folder, or overwrite what is there "
            "(--overwrite, overwrite=True)"
        )


def make_folder(outdir: Path, what: str = "outdir") -> None:
    """Makes a folder if it is not there; one that cannot be made or written to is a ValueError that says what it is."""
    try:
        outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{what} {outdir} must be a folder that can be made: {error.strerror}") from error
    if not os.access(outdir, os.W_OK):
        raise ValueError(f"{what} {outdir} must be a folder that can be written to")


def write_new(path: Path, content: bytes, overwrite: bool) -> None:
    """Writes a file whole or not at all; an OSError if it is a link or protected, or there and `overwrite` is false."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    write_whole(path, content, overwrite)


def write_all(files: Iterable[tuple[Path, bytes]], overwrite: bool) -> list[Path]:
    """Writes files by `write_new`, and returns their paths; an OSError says which were written before it."""
    written: list[Path] = []
    for path, content in files:
        try:
            write_new(path, content, overwrite)
        except OSError as error:
            before = f"written before it: {', '.join(map(str, written)) or 'none'}"
            raise OSError(error.errno, f"{error.strerror} ({before})", error.filename) from error
        written.append(path)
    return written
