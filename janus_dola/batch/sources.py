"""Where prompts come from: a file, a folder of files, a pipe or stdin.

A run reads its prompts several times, so what it reads is a copy made at its start: whatever happens to the file meanwhile,
the run draws what stood there, and can say afterwards that it changed.
"""

import codecs
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from janus_dola.batch import formats
from janus_dola.batch.formats import MAX_LINE, NotThatFormatError, Piece, Reader

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
