"""Prompts from a file, a folder, a pipe or memory, each checked and numbered: what can be drawn, what cannot, and why.

A run reads its prompts several times, so it reads a copy made at its start: whatever happens to the file meanwhile, the run
draws what stood there. A million prompts need no more memory than one: nothing here keeps what it has read.
"""

import codecs
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from janus_dola.arguments import MAX_PARALLEL_SIZE, MAX_SEED, integer, last_seed, shown
from janus_dola.batch import readers
from janus_dola.batch.readers import MAX_LINE, Piece, Reader, decode, key_of_prompt, parse_json
from janus_dola.batch.run_settings import RunSettings
from janus_dola.settings import SETTINGS, DrawSettings

_READERS: dict[str, Reader] = {
    ".json": readers.read_json,
    ".jsonl": readers.read_json_lines,
    ".ndjson": readers.read_json_lines,
    ".txt": readers.read_text,
    ".csv": partial(readers.read_table, ",;"),
    ".tsv": partial(readers.read_table, "\t"),
}
_MARKS = {  # UTF-32 comes first: its mark begins like UTF-16's
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-8-sig": (codecs.BOM_UTF8,),
}
_MAX_FILE = MAX_LINE // 8  # bytes per file in a folder, since JSON may take six bytes for one
_KEYS = ("id", "seed", "parallel_size", *SETTINGS)
_SAME_FOR_ALL = ("model", "dtype", "quantize")  # keys that a prompt cannot set for itself
_MAX_PROMPT = 2**16  # characters; no model reads that many
_MAX_FAULT = 300  # characters
_MAX_DEPTH = 20  # levels in values that are only kept

Prompts = str | Path | Iterable[str | Mapping[str, Any]]


@dataclass(frozen=True)
class ImageTask:
    """One image to draw."""

    number: int  # place among the run's images
    index: int  # place of its prompt
    k: int  # place among the prompt's images
    prompt: str
    seed: int
    drawing: DrawSettings
    id: str | int | None = None  # the user's name for the prompt
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys that set nothing, kept in the manifest


@dataclass(frozen=True)
class PromptRecord:
    """A prompt's images, numbered; a bad prompt has none."""

    index: int  # place among the prompts
    first: int  # number of its first image
    tasks: list[ImageTask]
    fault: str = ""  # why a bad prompt cannot be drawn, and where it stands


class PromptSource:
    """Prompts that can be read again and again; `prompts` and `prompt_key` as in `run_batch`.

    The ending of a file says how it is read, the first line of a pipe or stdin. A file that cannot be read is an OSError,
    one without a known format a ValueError.
    """

    def __init__(self, prompts: Prompts, prompt_key: str | None = None) -> None:
        self.name, self._prompt_key = "prompts", prompt_key
        self.entropy = random.getrandbits(48)  # what random seeds are made of, the same ones at each reading
        self._path: Path | None = None
        if isinstance(prompts, str | Path):
            self._path = Path(prompts)
            self._copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
            self._stamp_at_start = _stamp(self._path)
            self._reader = self._open(self._path)
        elif isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
            raise ValueError(f"prompts must be a file, or strings and mappings, got {shown(prompts)}")
        else:
            self._list = list(prompts)

    def read(self, settings: RunSettings, max_prompts: int | None = None) -> Iterator[PromptRecord]:
        """Reads the prompts, in order, and numbers their images.

        Image k of a prompt has the number `images of all prompts before it + k` and, unless the prompt has its own seed, the
        seed `settings.seed + number`: two images share a seed only if it was given, and a prompt with the seed -1 gets one
        that `entropy` and its number decide. A bad prompt takes as many numbers as
        one without a parallel size, so that mending it changes no other image. A ValueError says that the file as a whole is
        not what its ending says, or that there are more images than seeds.
        """
        first = 0
        for index, (place, value) in enumerate(islice(self._pieces(), max_prompts)):
            tasks, fault = [], ""
            try:
                tasks = _tasks(index, first, value, self._prompt_key, settings, self.entropy)
            except ValueError as error:
                fault = f"{place}: {str(error)[:_MAX_FAULT]}{'...' if len(str(error)) > _MAX_FAULT else ''}"
            after = first + (len(tasks) or settings.parallel_size)
            if settings.seed > last_seed(after):
                raise ValueError(f"seed must leave room for prompt {index} up to {MAX_SEED}, got {settings.seed}")
            yield PromptRecord(index, first, tasks, fault)
            first = after

    @property
    def is_text(self) -> bool:
        """Returns whether each line is a prompt, whatever it begins with."""
        return self._path is not None and self._reader is readers.read_text

    def changed(self) -> bool:
        """Returns whether the file, or a file of the folder, has changed since it was copied."""
        return self._path is not None and _stamp(self._path) != self._stamp_at_start

    def _pieces(self) -> Iterator[Piece]:
        if self._path is None:
            yield from ((f"prompt {index}", prompt) for index, prompt in enumerate(self._list))
            return
        self._copy.seek(0)
        try:
            yield from self._reader(self._copy, self._prompt_key)
        except ValueError as error:
            raise ValueError(f"{self.name} {error}") from None

    def _open(self, path: Path) -> Reader:
        """Copies what is there, and returns what reads the copy."""
        if str(path) == "-":
            self.name = "stdin"
            self._copy_as_utf8(sys.stdin.buffer)
            return self._reader_by_first_line()
        self.name = f"prompt {'folder' if path.is_dir() else 'file'} {path}"
        if path.is_dir():
            self._copy_folder(path)
            return readers.read_json_lines
        reader = _READERS.get(path.suffix.lower())
        if reader is None and (not path.exists() or path.is_file()):
            path.stat()  # raises an error where there is no file
            raise ValueError(
                f"{self.name} must end in one of {', '.join(_READERS)}, got {path.suffix!r}; "
                "prompts of another name can be passed through stdin: --prompts -"
            )
        if path.is_char_device() or path.is_block_device():
            raise ValueError(f"{self.name} must be a file, a folder or a pipe, got a device")
        with path.open("rb") as file:
            self._copy_as_utf8(file)
        return reader or self._reader_by_first_line()

    def _copy_as_utf8(self, file: IO[bytes]) -> None:
        shutil.copyfileobj(file, self._copy)
        self._copy.seek(0)
        encoding = _marked(self._copy.read(4))
        if encoding is None:
            return
        self._copy.seek(0)
        text = io.TextIOWrapper(self._copy, encoding, newline="")
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            shutil.copyfileobj(text, codecs.getwriter("utf-8")(self._copy))
        except UnicodeError as error:
            raise ValueError(f"{self.name} must be the {encoding} that its byte order mark says: {error}") from None

    def _copy_folder(self, folder: Path) -> None:
        """Copies each file, sorted by name, as a JSON line with the file's name as its id."""
        if self._prompt_key is not None:
            raise ValueError(f"{self.name} has no keys, so that prompt_key must be left out, got {self._prompt_key!r}")
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        others = [path.name for path in paths if path.suffix.lower() != ".txt" or not path.is_file()]
        if others or not paths:
            other = others[0] if others else "none"
            raise ValueError(f"{self.name} must hold .txt files only, a prompt each, got {other!r}")
        for path in paths:
            with path.open("rb") as file:
                content = file.read(_MAX_FILE + 1)
            if len(content) > _MAX_FILE:
                raise ValueError(f"{self.name} must hold a prompt a file, but {path.name} has over {_MAX_FILE} bytes")
            try:
                prompt = decode(content.decode(encoding).encode() if (encoding := _marked(content)) else content)
            except ValueError as error:
                raise ValueError(f"{self.name}: {path.name} {error}") from None
            if not prompt.strip():
                raise ValueError(f"{self.name} must hold a prompt a file, but {path.name} is empty")
            name = os.fsencode(path.stem).decode("utf-8", "surrogateescape")  # whatever the locale says
            self._copy.write(json.dumps({"prompt": prompt.strip("\r\n"), "id": name}).encode() + b"\n")

    def _reader_by_first_line(self) -> Reader:
        self._copy.seek(0)
        first = next((line.strip() for line in iter(lambda: self._copy.readline(MAX_LINE), b"") if line.strip()), b"")
        if first.startswith((b"{", b"[")):
            with suppress(ValueError):
                value = parse_json(first)
                if isinstance(value, dict) and "prompts" not in value:
                    return readers.read_json_lines
            return readers.read_json
        for ending, delimiter in ((".tsv", b"\t"), (".csv", b","), (".csv", b";")):
            cells = [cell.strip(b'"').decode("utf-8", "replace") for cell in first.split(delimiter)]
            with suppress(ValueError):
                key_of_prompt(cells, self._prompt_key)
                if len(cells) > 1:
                    return _READERS[ending]
        return readers.read_text


def _stamp(path: Path) -> object:
    """Returns sizes and times of a file or of a folder's files; nothing of a pipe, which flows by."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        states = [(file.name, file.stat()) for file in files]
    except OSError:
        return None
    return [(name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in states]


def _marked(content: bytes) -> str | None:
    """Returns the encoding that a byte order mark names, if there is one."""
    return next((name for name, marks in _MARKS.items() if content.startswith(marks)), None)


def _tasks(
    index: int, first: int, value: object, prompt_key: str | None, settings: RunSettings, entropy: int
) -> list[ImageTask]:
    """Returns the images that a piece of a file, or a prompt in memory, stands for; a ValueError says why there are none."""
    if isinstance(value, ValueError):
        raise value
    if isinstance(value, str):
        value, prompt_key = {"prompt": value}, "prompt"
    if not isinstance(value, Mapping):
        raise ValueError(f'must be a string, or an object such as {{"prompt": "..."}}, got {shown(value)}')
    key = key_of_prompt(list(value), prompt_key)
    prompt, fields = value[key], {name: each for name, each in value.items() if name != key}
    given = {name: each for name, each in fields.items() if each is not None or name == "contrast"}
    misplaced = next((name for name in given if name in _SAME_FOR_ALL), None)
    if misplaced is not None:
        raise ValueError(f"{misplaced} must be the same for all prompts of a run, got {shown(given[misplaced])}")
    name = given.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise ValueError(f"id must be a string or an int, got {shown(name)}")
    negative = given.get("negative_prompt", "")
    for what, text in (("prompt", prompt), ("negative_prompt", negative)):
        if not isinstance(text, str):
            raise ValueError(f"{what} must be a string, got {shown(text)}")
        if len(text) > _MAX_PROMPT:
            raise ValueError(f"{what} must have at most {_MAX_PROMPT} characters, got {len(text)}")
    extra = {key: each for key, each in fields.items() if key not in _KEYS}
    if _is_deeper(extra, _MAX_DEPTH):
        raise ValueError(f"keys must be nested at most {_MAX_DEPTH} deep, got {shown(extra)}")
    try:
        stored = json.dumps(extra, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"keys must hold what JSON can, got {shown(extra)} ({error})") from None
    for text in (prompt, negative, str(name), stored):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"prompt and keys must be valid Unicode, got {shown(text)}") from None
    size = integer("parallel_size", given.get("parallel_size", settings.parallel_size), 1, MAX_PARALLEL_SIZE)
    seed = given.get("seed", settings.seed + first)
    if seed in (-1, "random"):
        seed = random.Random(f"{entropy} {first}").getrandbits(48)
    seed = integer("seed", seed, 0, last_seed(size), '-1, "random" or ')
    drawing = settings.drawing.changed({key: each for key, each in given.items() if key in SETTINGS})
    extra = json.loads(stored)  # as it comes back from the manifest
    return [ImageTask(first + k, index, k, prompt, seed + k, drawing, name, extra) for k in range(size)]


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)
