"""The forms that prompts come in: what stands in a file, piece by piece, before anyone asks whether it can be drawn.

Everything has a limit, so that no file takes more than seconds and a gigabyte: a line, a JSON document, an integer in it.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from janus_dola.arguments import shown
from janus_dola.settings import SETTINGS

MAX_LINE = 2**20  # bytes
MAX_JSON = 2**22  # bytes of a document that is read whole
MAX_JSON_PROMPTS = 2**17  # in it; each is checked at every reading, about a second in all
_MAX_DIGITS = 1000  # of an integer
# Columns whose cells are JSON.
_TYPED = ("seed", "parallel_size", *(name for name, setting in SETTINGS.items() if setting.type != str | None))
_JSON = 'must be a JSON list of prompts, or {"prompts": [...]}, each a string or an object'


@dataclass(frozen=True)
class Malformed:
    """A piece of a file that holds no prompt, and why."""

    reason: str


@dataclass(frozen=True)
class Fields:
    """A piece of a file that holds a prompt, or what should be one, and what else stands with it."""

    prompt: Any
    more: Mapping[str, Any] = field(default_factory=dict)


Piece = tuple[str, Fields | Malformed]  # where it stands, and what it is
Reader = Callable[[IO[bytes], str | None], Iterator[Piece]]  # of a file, and the key of the prompt


class NotThatFormatError(Exception):
    """A file as a whole is not what its ending says."""


def parse_json(text: str | bytes) -> Any:
    """What a JSON text of bounded size holds.

    Raises:
        ValueError: it is not JSON, is nested too deeply, names a key twice or holds an integer of more than 1000 digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"the key {shown(_twice(name for name, _ in pairs))} stands there twice")
    return fields


def _twice(names: Iterable[str]) -> str | None:
    """The first name that was there before."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def read_json(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """A list of strings and objects, bare or as "prompts" of an object."""
    content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise NotThatFormatError(
            f"must be at most {MAX_JSON >> 20} MiB of JSON; longer lists are .jsonl, an object a line"
        )
    try:
        found = parse_json(content)
    except ValueError as error:
        lines = "; an object a line is .jsonl" if "Extra data" in str(error) else ""
        raise NotThatFormatError(f"{_JSON}, but is not JSON: {error}{lines}") from None
    del content
    prompts = found.get("prompts") if isinstance(found, dict) else found
    if not isinstance(prompts, list) or not prompts:
        raise NotThatFormatError(f"{_JSON}, got {'an empty list' if prompts == [] else shown(found)}")
    if len(prompts) > MAX_JSON_PROMPTS:
        raise NotThatFormatError(
            f"must hold at most {MAX_JSON_PROMPTS} prompts, got {len(prompts)}; longer lists are .jsonl, an object a line"
        )
    for index, prompt in enumerate(prompts):
        yield f"prompt {index}", fields_of(prompt, prompt_key)


def fields_of(found: object, prompt_key: str | None) -> Fields | Malformed:
    """A string, or an object with its prompt told from the rest."""
    if isinstance(found, str):
        return Fields(found)
    if not isinstance(found, Mapping):
        return Malformed(f'must be a string, or an object such as {{"prompt": "..."}}, got {shown(found)}')
    try:
        name = key_of_prompt(list(found), prompt_key)
    except ValueError as error:
        return Malformed(str(error))
    return Fields(found[name], {key: value for key, value in found.items() if key != name})


def key_of_prompt(names: Sequence[object], prompt_key: str | None) -> Any:
    """Which of the keys of an object, or columns of a table, is the prompt.

    Raises:
        ValueError: none is, or it is not plain which.
    """
    if prompt_key is not None:
        found = [name for name in names if name == prompt_key]
    else:
        alike = [name for name in names if isinstance(name, str) and name.casefold() == "prompt"]
        found = ["prompt"] if "prompt" in alike else alike
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"must have the key {prompt_key or 'prompt'!r}, got {shown(list(names))[1:-1] or 'none'}; "
        "--prompt-key names another"
    )


def read_json_lines(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """An object a line."""
    for place, line in _lines(file):
        try:
            found = parse_json(decoded(line))
        except ValueError as error:
            yield (
                place,
                Malformed(f'must be a JSON object such as {{"prompt": "..."}}, got {shown(line[:MAX_LINE])} ({error})'),
            )
            continue
        if isinstance(found, dict):
            yield place, fields_of(found, prompt_key)
        else:
            yield place, Malformed(f'must be a JSON object such as {{"prompt": "..."}}, got {shown(line)}')


def read_text(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """A prompt a line."""
    if prompt_key is not None:
        raise NotThatFormatError(f"has no keys, so that prompt_key must be left out, got {prompt_key!r}")
    for place, line in _lines(file):
        try:
            text = decoded(line)
            if "\r" in text:
                raise ValueError(f"must end in LF or CR LF, got a CR alone: {shown(text)}")
            yield place, Fields(text)
        except ValueError as error:
            yield place, Malformed(str(error))


def read_csv(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """A header and a prompt a row, cells divided by commas, or by semicolons where the header has no comma."""
    header = file.readline(MAX_LINE)
    file.seek(-len(header), 1)
    yield from _read_table(file, prompt_key, ";" if b";" in header and b"," not in header else ",")


def read_tsv(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """The same divided by tabs."""
    yield from _read_table(file, prompt_key, "\t")


def _read_table(file: IO[bytes], prompt_key: str | None, delimiter: str) -> Iterator[Piece]:
    lines = _Decoded(file)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        doubled = _twice(filter(None, names))
        if doubled is not None:
            raise ValueError(f"must have each column once, got {shown(doubled)} again")
        key = key_of_prompt(names, prompt_key)
    except (ValueError, csv.Error) as error:
        raise NotThatFormatError(f"header {error}") from None
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except (ValueError, csv.Error) as error:
            yield lines.place, Malformed(str(error))
            continue
        if not row:
            continue
        if len(row) > len(names):
            yield (
                lines.place,
                Malformed(f"must have at most {len(names)} cells as the header has, got {len(row)}: {shown(row)}"),
            )
            continue
        cells = {name: _value(name, cell) for name, cell in zip(names, row, strict=False) if name and cell}
        yield lines.place, Fields(cells.pop(key, ""), cells)


def _value(column: str, cell: str) -> Any:
    """What a cell says: numbers and lists are written as in JSON."""
    if column not in _TYPED:
        return cell
    try:
        return parse_json(cell)
    except ValueError:
        return cell


class _Decoded(Iterator[str]):
    """The lines of a file as text; can go on after a line that is none."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines = _lines(file, blank=True)
        self.place = "header"

    def __next__(self) -> str:
        self.place, line = next(self._lines)
        return decoded(line) + "\n"


def _lines(file: IO[bytes], blank: bool = False) -> Iterator[tuple[str, bytes]]:
    """The lines, without the blank ones, and where they stand; one that is too long is cut off just beyond the limit."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
            pass
        if blank or line.strip():
            yield f"line {number}", line.rstrip(b"\r\n")


def decoded(line: bytes) -> str:
    """A line as text.

    Raises:
        ValueError: it is too long, not UTF-8, or holds zero bytes.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f"must be at most {MAX_LINE >> 20} MiB, got more")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8, got {shown(line)} ({error.reason})") from None
    if "\0" in text:
        raise ValueError(
            f"must be UTF-8 without zero bytes, got {shown(line)} (is it UTF-16 without a byte order mark?)"
        )
    return text
