"""Reads prompts as a stream: a JSON list, JSON lines with settings of their own, or plain text, from a file or stdin.

A million prompts need no more memory than one: nothing here keeps what it has read. A run reads its prompts twice, once to
check all of them, so what cannot be read again (stdin, a pipe) is first copied to a temporary file.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol, cast

import ijson

from janus_dola.batch.settings import MAX_PARALLEL_SIZE, MAX_SEED, Look, Settings, Task, check_int
from janus_dola.config import DoLaConfig

_KEYS = ("prompt", "id", "seed", "parallel_size", "cfg_weight", "alpha", "candidate_layers")
_JSON = 'must be {"prompts": [str, ...]}'
_BOM = b"\xef\xbb\xbf"
_SHOWN = 80  # characters of a bad value in a message


@dataclass(frozen=True)
class Record:
    """One prompt, and what it sets for itself."""

    index: int  # place among the prompts, from 0
    prompt: str
    id: str | int | None = None
    seed: int | None = None
    parallel_size: int | None = None
    look: Look | None = None


@dataclass(frozen=True)
class BadRecord:
    """A prompt that cannot be drawn, and why; the reason says where it stands."""

    index: int
    reason: str


class Records(Protocol):
    """Prompts that can be read again and again."""

    name: str  # for messages

    def read(self, settings: Settings) -> Iterator[Record | BadRecord]:
        """The prompts, in order; settings are what their own ones override."""
        ...


def open_records(prompts: str | Path | Sequence[str | Mapping[str, Any]]) -> Records:
    """Prompts of a file, of stdin ("-"), or of a list of strings and of mappings with the keys of a JSON line.

    The ending of a file decides how it is read: `.json` holds `{"prompts": [str, ...]}`, `.jsonl` an object a line, `.txt` a
    prompt a line. Stdin and other endings are told by their first line.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    if isinstance(prompts, str | Path):
        return RecordFile(Path(prompts))
    return RecordList(prompts)


class RecordList:
    """Prompts in memory."""

    name = "prompts"

    def __init__(self, prompts: Sequence[str | Mapping[str, Any]]) -> None:
        self._prompts = prompts

    def read(self, settings: Settings) -> Iterator[Record | BadRecord]:
        """See `Records`."""
        for index, prompt in enumerate(self._prompts):
            fields = {"prompt": prompt} if isinstance(prompt, str) else prompt
            yield _record(index, f"prompt {index}", fields, settings)


class RecordFile:
    """Prompts of a file, or of stdin, which is copied to disk first."""

    def __init__(self, path: Path) -> None:
        self._copy: IO[bytes] | None = None
        self._path = path
        self.name = f"prompt file {path}"
        if str(path) == "-":
            self.name = "stdin"
            self._copy = _copied(sys.stdin.buffer)
        else:
            with path.open("rb") as file:
                if not path.is_file():  # a pipe
                    self._copy = _copied(file)
        self._kind = self._tell_kind()

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        file = self._copy or self._path.open("rb")
        try:
            file.seek(0)
            if file.read(len(_BOM)) != _BOM:
                file.seek(0)
            yield file
        finally:
            if self._copy is None:
                file.close()

    def _tell_kind(self) -> Literal["json", "lines", "text"]:
        endings = {".json": "json", ".jsonl": "lines", ".ndjson": "lines", ".txt": "text"}
        found = endings.get(self._path.suffix.lower())
        if found is None:
            found = "text"
            with self._opened() as file:
                first = next((line for line in file if line.strip()), b"").strip()
            if first.startswith(b"{"):
                fields = _parsed(first)
                found = "lines" if isinstance(fields, dict) and "prompts" not in fields else "json"
        return cast(Literal["json", "lines", "text"], found)

    def read(self, settings: Settings) -> Iterator[Record | BadRecord]:
        """See `Records`.

        Raises:
            ValueError: the file as a whole is not what it should be.
        """
        readers: dict[str, Callable[[IO[bytes], Settings], Iterator[Record | BadRecord]]] = {
            "json": _read_json,
            "lines": _read_lines,
            "text": _read_text,
        }
        with self._opened() as file:
            try:
                yield from readers[self._kind](file, settings)
            except _NotThatFormatError as error:
                raise ValueError(f"{self.name} {error}") from None


class _NotThatFormatError(Exception):
    pass


def _copied(stream: IO[bytes]) -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
    shutil.copyfileobj(stream, copy)
    return copy


def _read_json(file: IO[bytes], settings: Settings) -> Iterator[Record | BadRecord]:
    index, depth, inside, found = 0, 0, False, False
    try:
        for prefix, event, value in ijson.parse(file):
            opens, closes = event in ("start_map", "start_array"), event in ("end_map", "end_array")
            depth -= closes
            if inside and depth == 2 and not closes:  # an element of the list
                place = f"{_JSON}, got {event if opens else _shown(value)} as prompt {index}"
                if event == "string":
                    yield _record(index, f"prompt {index}", {"prompt": value}, settings)
                else:
                    yield BadRecord(index, place)
                index += 1
            elif depth == 1 and prefix == "prompts" and event != "map_key":
                inside = event == "start_array"
                found = found or inside
            elif depth == 0 and opens and event != "start_map":
                break
            depth += opens
    except ijson.JSONError as error:
        text = error.args[0] if error.args else error
        message = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        raise _NotThatFormatError(f"{_JSON}, but is not JSON: {message.splitlines()[0]}") from None
    if not found or index == 0:
        raise _NotThatFormatError(
            f"{_JSON} with at least one prompt, got {'an empty list' if found else 'no such list'}"
        )


def _read_lines(file: IO[bytes], settings: Settings) -> Iterator[Record | BadRecord]:
    for index, (place, line) in enumerate(_lines(file)):
        fields = _parsed(line)
        if isinstance(fields, Mapping):
            yield _record(index, place, fields, settings)
        else:
            yield BadRecord(index, f'{place}: must be a JSON object such as {{"prompt": "..."}}, got {_shown(line)}')


def _read_text(file: IO[bytes], settings: Settings) -> Iterator[Record | BadRecord]:
    for index, (place, line) in enumerate(_lines(file)):
        try:
            yield _record(index, place, {"prompt": line.decode("utf-8")}, settings)
        except UnicodeDecodeError as error:
            yield BadRecord(index, f"{place}: must be UTF-8, got {_shown(line)} ({error.reason})")


def _lines(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """The lines that are not blank, and where they stand."""
    found = False
    for number, line in enumerate(file, 1):
        if line.strip():
            found = True
            yield f"line {number}", line.rstrip(b"\r\n")
    if not found:
        raise _NotThatFormatError("must hold at least one prompt, got none")


def _parsed(line: bytes) -> object:
    """What a line holds as JSON; None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _shown(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _record(index: int, place: str, fields: Mapping[str, Any], settings: Settings) -> Record | BadRecord:
    try:
        return _checked(index, fields, settings)
    except ValueError as error:
        return BadRecord(index, f"{place}: {error}")


def _checked(index: int, fields: Mapping[str, Any], settings: Settings) -> Record:
    unknown = [key for key in fields if key not in _KEYS]
    if unknown:
        raise ValueError(f"keys must be among {', '.join(_KEYS)}, got {_shown(unknown[0])}")
    given = {key: value for key, value in fields.items() if value is not None}
    prompt, name = given.get("prompt"), given.get("id")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be a string, got {_shown(prompt)}")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise ValueError(f"id must be a string or an int, got {_shown(name)}")
    for text in (prompt, str(name)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"prompt and id must be valid Unicode, got {ascii(text)[:_SHOWN]}") from None
    size = given.get("parallel_size")
    if size is not None:
        check_int("parallel_size", size, 1, MAX_PARALLEL_SIZE)
    if "seed" in given:
        check_int("seed", given["seed"], 0, MAX_SEED - (size or settings.parallel_size))
    return Record(index, prompt, name, given.get("seed"), size, _look(given, settings.look))


def _look(given: Mapping[str, Any], of_run: Look) -> Look | None:
    dola, weight = of_run.dola, of_run.cfg_weight
    if "cfg_weight" in given:
        weight = _number("cfg_weight", given["cfg_weight"])
    changed = {key: given[key] for key in ("alpha", "candidate_layers") if key in given}
    if changed:
        if dola is None:
            raise ValueError(f"{next(iter(changed))} must be left out where the run is without DoLa")
        if "alpha" in changed:
            changed["alpha"] = _number("alpha", changed["alpha"])
        layers = changed.get("candidate_layers", "auto")
        if not isinstance(layers, str | list | tuple):
            raise ValueError(f'candidate_layers must be "auto" or a list of ints, got {_shown(layers)}')
        dola = DoLaConfig(
            candidate_layers=changed.get("candidate_layers", dola.candidate_layers),
            alpha=changed.get("alpha", dola.alpha),
            premature_layer=dola.premature_layer,
        )
    look = replace(of_run, cfg_weight=weight, dola=dola)
    return look if look != of_run else None


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a finite number, got {_shown(value)}") from None


Numbered = tuple[int, Record | BadRecord, list[Task]]


def numbered(records: Iterable[Record | BadRecord], settings: Settings) -> Iterator[Numbered]:
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
            look = record.look or settings.look
            tasks = [Task(first + k, record.index, k, record.prompt, seed + k, look, record.id) for k in range(size)]
        yield first, record, tasks
        first += size
