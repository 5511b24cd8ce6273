"""Prompts: from a file, a folder, a pipe or stdin, each checked: what can be drawn, what is malformed and why.

A run reads its prompts several times, so what it reads is a copy made at its start: whatever happens to the file meanwhile,
the run draws what stood there, and can say afterwards that it changed. A million prompts need no more memory than one:
nothing here keeps what it has read. `formats` knows how each kind of file is read.
"""

import codecs
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from janus_dola.arguments import MAX_PARALLEL_SIZE, MAX_SEED, integer, shown
from janus_dola.batch import formats
from janus_dola.batch.formats import MAX_LINE, Fields, Malformed, NotThatFormatError, Piece, Reader, fields_of
from janus_dola.batch.settings import RunSettings, Task
from janus_dola.settings import SETTINGS, DrawSettings

_READERS: dict[str, Reader] = {
    ".json": formats.read_json,
    ".jsonl": formats.read_json_lines,
    ".ndjson": formats.read_json_lines,
    ".txt": formats.read_text,
    ".csv": formats.read_csv,
    ".tsv": formats.read_tsv,
}
# UTF-32 first: its mark begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_CHUNK = 2**16  # bytes
_MAX_FILE = MAX_LINE // 8  # bytes of a prompt in a file of its own; JSON may take six for one


class Source:
    """Prompts of a file, of a folder with a `.txt` file for each, or of stdin ("-").

    The ending of a file says how it is read; pipes and stdin are told by their first line.

    Args:
        prompt_key: the key or column that holds the prompt; None is "prompt", however it is capitalised.
    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is none of those.
    """

    def __init__(self, path: Path, prompt_key: str | None = None) -> None:
        self._path, self._prompt_key = path, prompt_key
        self.name = "stdin" if str(path) == "-" else f"prompt file {path}"
        self._copy: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._before = self._state()
        if str(path) == "-":
            self._take(sys.stdin.buffer)
            self._reader = self._told_by_first_line()
        elif path.is_dir():
            self.name = f"prompt folder {path}"
            self._take_folder()
            self._reader = formats.read_json_lines
        else:
            self._reader = self._of_file()

    def _of_file(self) -> Reader:
        found = _READERS.get(self._path.suffix.lower())
        if found is None and (not self._path.exists() or self._path.is_file()):
            self._path.stat()  # says where there is none
            raise ValueError(
                f"{self.name} must end in one of {', '.join(_READERS)}, got {self._path.suffix!r}; "
                "prompts of another name can be passed through stdin: --prompts -"
            )
        if self._path.is_char_device() or self._path.is_block_device():
            raise ValueError(f"{self.name} must be a file, a folder or a pipe, got a device")
        with self._path.open("rb") as file:
            self._take(file)
        return found or self._told_by_first_line()

    def _take(self, file: IO[bytes]) -> None:
        """Copies bytes, as UTF-8."""
        head = file.read(_CHUNK)
        encoding = _marked(head)
        if encoding is None:
            self._copy.write(head)
            shutil.copyfileobj(file, self._copy)
            return
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            while head:
                self._copy.write(decoder.decode(head).encode("utf-8"))
                head = file.read(_CHUNK)
            decoder.decode(b"", final=True)
        except UnicodeError as error:
            raise ValueError(f"{self.name} must be the {encoding} that its byte order mark says: {error}") from None

    def _take_folder(self) -> None:
        """Copies each file as a JSON line, with the name of the file as its id."""
        if self._prompt_key is not None:
            raise ValueError(f"{self.name} has no keys, so that prompt_key must be left out, got {self._prompt_key!r}")
        for path in self._files():
            with path.open("rb") as file:
                content = file.read(_MAX_FILE + 1)
                if len(content) > _MAX_FILE:
                    raise ValueError(
                        f"{self.name} must hold a prompt a file, but {path.name} has over {_MAX_FILE} bytes"
                    )
            try:
                encoding = _marked(content)
                prompt = formats.decoded(content if encoding is None else content.decode(encoding).encode())
            except ValueError as error:
                raise ValueError(f"{self.name}: {path.name} {error}") from None
            if not prompt.strip():
                raise ValueError(f"{self.name} must hold a prompt a file, but {path.name} is empty")
            self._copy.write(json.dumps({"prompt": prompt.strip("\r\n"), "id": path.stem}).encode() + b"\n")

    def _files(self) -> list[Path]:
        """The files of the folder by name, without hidden ones."""
        paths = sorted(path for path in self._path.iterdir() if not path.name.startswith("."))
        other = [path.name for path in paths if path.suffix.lower() != ".txt" or not path.is_file()]
        if other or not paths:
            raise ValueError(
                f"{self.name} must hold .txt files only, a prompt each, got {other[0] if other else 'none'!r}"
            )
        return paths

    def _told_by_first_line(self) -> Reader:
        self._copy.seek(0)
        first = b""
        while not first.strip() and (line := self._copy.readline(MAX_LINE)):
            first = line
        first = first.strip()
        if first.startswith(b"{"):
            try:
                fields = formats.parse_json(first)
            except ValueError:
                return formats.read_json
            return formats.read_json if "prompts" in fields else formats.read_json_lines
        if first.startswith(b"["):
            return formats.read_json
        for reader, delimiter in ((formats.read_tsv, b"\t"), (formats.read_csv, b","), (formats.read_csv, b";")):
            cells = [cell.strip(b'"').decode("utf-8", "replace") for cell in first.split(delimiter)]
            if len(cells) > 1 and _names_prompt(cells, self._prompt_key):
                return reader
        return formats.read_text

    def pieces(self) -> Iterator[Piece]:
        """What stands there, from the first piece on.

        Raises:
            ValueError: it is not of the form that its name says.
        """
        self._copy.seek(0)
        try:
            yield from self._reader(self._copy, self._prompt_key)
        except NotThatFormatError as error:
            raise ValueError(f"{self.name} {error}") from None

    def changed(self) -> bool:
        """Whether the file, or the folder's files, changed since they were read."""
        return self._state() != self._before

    def _state(self) -> object:
        """Sizes and times of what is read; None for what flows by."""
        if str(self._path) == "-":
            return None
        try:
            if self._path.is_dir():
                return sorted((entry.name, *_stamp(entry.stat())) for entry in os.scandir(self._path))
            return _stamp(self._path.stat()) if self._path.is_file() else None
        except OSError:
            return None


def _marked(content: bytes) -> str | None:
    """The encoding that a byte order mark names, if there is one."""
    return next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _names_prompt(cells: list[str], prompt_key: str | None) -> bool:
    try:
        formats.key_of_prompt(cells, prompt_key)
    except ValueError:
        return False
    return True


Prompts = str | Path | Iterable[str | Mapping[str, Any]]

_KEYS = ("id", "seed", "parallel_size", *SETTINGS)
_OF_RUN = ("model", "dtype", "quantize")  # not a prompt's own
_MAX_PROMPT = 2**16  # characters; no model reads that many
_SHOWN = 300  # characters of a reason
_MAX_DEPTH = 20  # of values that are only kept


@dataclass(frozen=True)
class Record:
    """One prompt, and what it sets for itself."""

    index: int  # place among the prompts, from 0
    prompt: str
    id: str | int | None = None
    seed: int | None = None
    parallel_size: int | None = None
    drawing: DrawSettings | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # keys that set nothing, kept in the manifest


@dataclass(frozen=True)
class BadRecord:
    """A prompt that cannot be drawn, and why; the reason says where it stands."""

    index: int
    reason: str


class Records(Protocol):
    """Prompts that can be read again and again."""

    name: str  # for messages

    def read(self, settings: RunSettings) -> Iterator[Record | BadRecord]:
        """The prompts, in order; settings are what their own ones override."""
        ...

    def changed(self) -> bool:
        """Whether what `read` gives is no longer what the file holds."""
        ...


def open_records(prompts: Prompts, prompt_key: str | None = None) -> Records:
    """Prompts of a file, of a folder, of stdin ("-"), or any number of strings and of mappings with the keys of a JSON line.

    Args:
        prompt_key: the key, or column, that holds the prompt; None is "prompt", however it is capitalised.
    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is of no known form.
    """
    if isinstance(prompts, str | Path):
        return RecordFile(Source(Path(prompts), prompt_key))
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be a file, or strings and mappings, got {shown(prompts)}")
    return RecordList(prompts, prompt_key)


class RecordList:
    """Prompts in memory."""

    name = "prompts"

    def __init__(self, prompts: Iterable[str | Mapping[str, Any]], prompt_key: str | None = None) -> None:
        self._prompts, self._prompt_key = list(prompts), prompt_key

    def read(self, settings: RunSettings) -> Iterator[Record | BadRecord]:
        """See `Records`."""
        for index, prompt in enumerate(self._prompts):
            yield _record(index, f"prompt {index}", fields_of(prompt, self._prompt_key), settings)

    def changed(self) -> bool:
        """See `Records`."""
        return False


class RecordFile:
    """Prompts of a file, a folder or stdin."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name = source.name

    def read(self, settings: RunSettings) -> Iterator[Record | BadRecord]:
        """See `Records`.

        Raises:
            ValueError: the file as a whole is not what it should be.
        """
        for index, (place, found) in enumerate(self._source.pieces()):
            yield _record(index, place, found, settings)

    def changed(self) -> bool:
        """See `Records`."""
        return self._source.changed()


def _record(index: int, place: str, found: Fields | Malformed, settings: RunSettings) -> Record | BadRecord:
    try:
        if isinstance(found, Malformed):
            raise ValueError(found.reason)
        return _checked(index, found, settings)
    except ValueError as error:
        reason = str(error)
        return BadRecord(index, f"{place}: {reason if len(reason) <= _SHOWN else reason[:_SHOWN] + '...'}")


def _checked(index: int, found: Fields, settings: RunSettings) -> Record:
    prompt, given = found.prompt, {key: value for key, value in found.more.items() if value is not None}
    of_run = next((key for key in given if key in _OF_RUN), None)
    if of_run is not None:
        raise ValueError(f"{of_run} must be the same for all prompts of a run, got {shown(given[of_run])}")
    name, size = given.get("id"), given.get("parallel_size")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise ValueError(f"id must be a string or an int, got {shown(name)}")
    _check_text("prompt", prompt)
    if "negative_prompt" in given:
        _check_text("negative_prompt", given["negative_prompt"])
    _check_unicode(str(name))
    extra = {key: value for key, value in found.more.items() if key not in _KEYS}
    if size is not None:
        size = integer("parallel_size", size, 1, MAX_PARALLEL_SIZE)
    seed = given.get("seed")
    if seed is not None:
        seed = integer("seed", seed, 0, MAX_SEED - (size or settings.parallel_size))
    return Record(
        index, prompt, name, seed, size, _drawing(given, settings.drawing), _stored(extra) if extra else extra
    )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {shown(value)}")
    if len(value) > _MAX_PROMPT:
        raise ValueError(f"{name} must have at most {_MAX_PROMPT} characters, got {len(value)}")
    _check_unicode(value)


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"prompt and keys must be valid Unicode, got {shown(text)}") from None


def _stored(value: Any) -> Any:
    """A value as it comes back from the manifest.

    Raises:
        ValueError: the manifest cannot hold it.
    """
    if _is_deeper(value, _MAX_DEPTH):
        raise ValueError(f"keys must be nested at most {_MAX_DEPTH} deep, got {shown(value)}")
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"keys must hold what JSON can, got {shown(value)} ({error})") from None
    _check_unicode(text)
    return json.loads(text)


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _drawing(given: Mapping[str, Any], of_run: DrawSettings) -> DrawSettings | None:
    own = {name: value for name, value in given.items() if name in SETTINGS}
    found = of_run.changed(own)
    return found if found != of_run else None


Numbered = tuple[int, Record | BadRecord, list[Task]]


def numbered(records: Iterable[Record | BadRecord], settings: RunSettings) -> Iterator[Numbered]:
    """Each record with the number of its first image and its images; none for a bad one.

    Image k of a record has the number `images of all records before it + k`, and without a seed of its own
    the seed `settings.seed + number`: no two images share one unless it was given. A bad record takes up as many numbers
    as one without a parallel size, so that mending it changes no other image.
    """
    first = 0
    for record in records:
        size = settings.parallel_size
        if isinstance(record, Record) and record.parallel_size is not None:
            size = record.parallel_size
        if settings.seed + first + size > MAX_SEED:
            raise ValueError(f"seed must leave room for prompt {record.index} below {MAX_SEED}, got {settings.seed}")
        tasks = []
        if isinstance(record, Record):
            seed = settings.seed + first if record.seed is None else record.seed
            drawing = record.drawing or settings.drawing
            tasks = [
                Task(first + k, record.index, k, record.prompt, seed + k, drawing, record.id, record.extra)
                for k in range(size)
            ]
        yield first, record, tasks
        first += size
