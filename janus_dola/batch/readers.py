"""Reads prompt files of every format piece by piece, before anyone asks whether a piece can be drawn.

Everything has a limit, so that no file takes more than seconds and a gigabyte: a line, a JSON document, an integer in it.
"""

import csv
import json
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any

from janus_dola.arguments import shown
from janus_dola.settings import SETTINGS

MAX_LINE = 2**20  # bytes
_MAX_JSON = 2**22  # bytes per document, which is read whole
_MAX_JSON_PROMPTS = 2**17  # per document; each is checked at every reading, about a second in all
_MAX_DIGITS = 1000  # per integer
_TYPED = ("seed", "parallel_size", *(name for name, setting in SETTINGS.items() if setting.type != str | None))
_LIST = 'must be a JSON list of prompts, or {"prompts": [...]}, each a string or an object'
_OBJECT = 'must be a JSON object such as {"prompt": "..."}, got'

# Of a table: a cell in quotes, a cell whose quote does not end in its line, and what may come between quotes in a .tsv.
_QUOTED, _OPEN, _INSIDE = re.compile(r'"((?:[^"]|"")*)"'), re.compile(r'"(?:[^"]|"")*'), re.compile(r'^(?:[^"\t]|"")*')
_DOUBLED = 'a quote that belongs to the words is written twice, in a cell in quotes: "a ""red"" circle"'

# Where a line stands, such as "line 3", and what it holds.
Line = tuple[str, bytes]
# Where a row begins, and its cells, or why it cannot be read.
Row = tuple[str, list[str] | ValueError]
# Where a piece stands, such as "line 3", and its value: a string, an object with the prompt among its keys, or a
# ValueError that says why the piece cannot be read.
Piece = tuple[str, Any]
# Reads a file, given the prompt's key. What it raises, a ValueError, is wrong with the file as a whole.
Reader = Callable[[IO[bytes], str | None], Iterator[Piece]]


def parse_json(text: str | bytes) -> Any:
    """Parses JSON text; a ValueError where it is nested too deeply, names a key twice or has an integer over 1000 digits."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"the key {shown(_repeated(name for name, _ in pairs))} stands there twice")
    return fields


def _repeated(names: Iterable[str]) -> str | None:
    """Returns the first name that comes a second time."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def key_of_prompt(names: Sequence[object], prompt_key: str | None) -> Any:
    """Returns which key of an object, or column of a table, holds the prompt; a ValueError if none or several might."""
    if prompt_key is not None:
        keys = [name for name in names if name == prompt_key]
    else:
        alike = [name for name in names if isinstance(name, str) and name.casefold() == "prompt"]
        keys = ["prompt"] if "prompt" in alike else alike
    if len(keys) == 1:
        return keys[0]
    raise ValueError(
        f"must have the key {prompt_key or 'prompt'!r}, got {shown(list(names))[1:-1] or 'none'}; "
        "--prompt-key names another"
    )


def read_json(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """Reads a list of strings and objects, bare or under the key "prompts"."""
    content = file.read(_MAX_JSON + 1)
    if len(content) > _MAX_JSON:
        raise ValueError(f"must be at most {_MAX_JSON >> 20} MiB of JSON; longer lists are .jsonl, an object a line")
    try:
        document = parse_json(content)
    except ValueError as error:
        hint = "; an object a line is .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{_LIST}, but is not JSON: {error}{hint}") from None
    del content
    prompts = document.get("prompts") if isinstance(document, dict) else document
    if not isinstance(prompts, list) or not prompts:
        raise ValueError(f"{_LIST}, got {'an empty list' if prompts == [] else shown(document)}")
    if len(prompts) > _MAX_JSON_PROMPTS:
        raise ValueError(
            f"must hold at most {_MAX_JSON_PROMPTS} prompts, got {len(prompts)}; longer lists are .jsonl, an object a line"
        )
    yield from ((f"prompt {index}", prompt) for index, prompt in enumerate(prompts))


def read_json_lines(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """Reads an object per line."""
    for place, line in _lines(file):
        try:
            value = parse_json(decode(line))
            yield place, value if isinstance(value, dict) else ValueError(f"{_OBJECT} {shown(line)}")
        except ValueError as error:
            yield place, ValueError(f"{_OBJECT} {shown(line[:MAX_LINE])} ({error})")


def read_text(file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """Reads a prompt per line."""
    if prompt_key is not None:
        raise ValueError(f"has no keys, so that prompt_key must be left out, got {prompt_key!r}")
    for place, line in _lines(file):
        try:
            text = decode(line)
            if "\r" in text:
                raise ValueError(f"must end in LF or CR LF, got a CR alone: {shown(text)}")
            yield place, text
        except ValueError as error:
            yield place, error


def read_table(delimiters: str, file: IO[bytes], prompt_key: str | None) -> Iterator[Piece]:
    """Reads a header and a prompt per row, cells divided by the first of the delimiters that the header has."""
    header = file.readline(MAX_LINE)
    file.seek(-len(header), 1)
    delimiter = next((each for each in delimiters if each.encode() in header), delimiters[0])
    lines = _Lines(file)
    rows = _rows_of_tabs(lines) if delimiter == "\t" else _rows_of_quotes(lines, delimiter)
    try:
        names = [name.strip() for name in _cells(next(rows, ("", []))[1])]
        repeated = _repeated(filter(None, names))
        if repeated is not None:
            raise ValueError(f"must have each column once, got {shown(repeated)} again")
        key = key_of_prompt(names, prompt_key)
    except ValueError as error:
        raise ValueError(f"header {error}") from None
    width = len(names)
    for place, row in rows:
        try:
            values = _cells(row)
            if len(values) > width:
                raise ValueError(
                    f"must have at most {width} cells as the header has, got {len(values)}: {shown(values)}"
                )
            cells = {name: _value(name, cell) for name, cell in zip(names, values, strict=False) if name and cell}
            if values:
                yield place, {key: "", **cells}
        except ValueError as error:
            yield place, error


def _cells(row: list[str] | ValueError) -> list[str]:
    if isinstance(row, ValueError):
        raise row
    return row


def _rows_of_tabs(lines: "_Lines") -> Iterator[Row]:
    """Yields the rows of a .tsv, where a line is a row.

    A cell may stand in quotes, with the quotes in it doubled. A quote that ends no cell is a character like others, but
    for one: spreadsheets write line ends into cells in quotes, and where that may be so a row is a ValueError.
    """
    width = 0
    for place, content in lines:
        try:
            text = decode(content)
            cells = text.split("\t") if text else []
            if cells and _OPEN.fullmatch(cells[-1]) and (closing := _closing(lines)) is not None:
                raise ValueError(
                    f"a quote begins {shown(cells[-1])}, and one in {closing} may end it, but in a .tsv a line is a row; "
                    f"{_DOUBLED}"
                )
            if 0 < width < len(cells):  # quotes may have tabs between them
                with suppress(csv.Error):
                    cells = next(csv.reader([text], delimiter="\t", strict=True))
            width = width or len(cells)
            yield place, [each[1].replace('""', '"') if (each := _QUOTED.fullmatch(cell)) else cell for cell in cells]
        except ValueError as error:
            yield place, error


def _closing(lines: "_Lines") -> str | None:
    """Returns which of the next lines ends a cell that a quote has begun, if one does; takes no line away."""
    seen, size, closing = list[Line](), 0, None
    for line in lines:
        seen.append(line)
        text = line[1].decode("utf-8", "replace")
        rest, size = _INSIDE.sub("", text, 1), size + 1 + len(text)
        if rest or size > csv.field_size_limit():
            closing = line[0] if rest[:2] in ('"', '"\t') else None
            break
    lines.put_back(seen)
    return closing


def _rows_of_quotes(lines: "_Lines", delimiter: str) -> Iterator[Row]:
    """Yields the rows of a .csv, where a cell in quotes may hold line ends; a warning says where they might be rows' ends.

    A quote that ends no cell spoils its own line alone.
    """
    width, warned = 0, False
    for first in lines:
        place, taken = first[0], [first]
        try:
            row = next(csv.reader(_texts(taken, lines), delimiter=delimiter, strict=True))
            if len(taken) > 1 and not warned and all(line.count(delimiter.encode()) == width - 1 for _, line in taken):
                warnings.warn(
                    f"a cell in quotes goes from {place} to {taken[-1][0]}, and each of these lines might be a row: "
                    f"{shown(row)}; {_DOUBLED}",
                    stacklevel=2,
                )
                warned = True
            width = width or len(row)
            yield place, row
        except (ValueError, csv.Error) as error:
            lines.put_back(taken[1:])
            if len(taken) > 1 or "unexpected end" in str(error):
                error = ValueError(f"a quote begins a cell, and none ends it as far as {taken[-1][0]}; {_DOUBLED}")
            yield place, ValueError(str(error))


def _texts(taken: list[Line], lines: "_Lines") -> Iterator[str]:
    """Yields the text of a line, then of those after it, which are taken."""
    yield decode(taken[0][1]) + "\n"
    for line in lines:
        taken.append(line)
        yield decode(line[1]) + "\n"


class _Lines(Iterator[Line]):
    """The lines of a file, blank ones, too; what was looked at ahead is put back."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines, self._back = _lines(file, blank=True), deque[Line]()

    def __next__(self) -> Line:
        return self._back.popleft() if self._back else next(self._lines)

    def put_back(self, lines: Sequence[Line]) -> None:
        """Puts lines back, which come next then."""
        self._back.extendleft(reversed(lines))


def _value(column: str, cell: str) -> Any:
    """Returns what a cell says: numbers and lists are written as in JSON."""
    try:
        return parse_json(cell) if column in _TYPED else cell
    except ValueError:
        return cell


def _lines(file: IO[bytes], blank: bool = False) -> Iterator[Line]:
    """Yields where each line stands, and the line, cut off just beyond the limit. Blank lines are left out unless wanted."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
            pass
        if blank or line.strip():
            yield f"line {number}", line.rstrip(b"\r\n")


def decode(line: bytes) -> str:
    """Decodes a line; one that is too long, not UTF-8, or holds zero bytes is a ValueError."""
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
