"""Prompts, checked one by one: what can be drawn, with settings of its own, and what is malformed and why.

A million prompts need no more memory than one: nothing here keeps what it has read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from janus_dola.batch.formats import Fields, Malformed, fields_of
from janus_dola.batch.settings import Settings, Task
from janus_dola.batch.sources import Source
from janus_dola.checks import MAX_PARALLEL_SIZE, MAX_SEED, integer, shown
from janus_dola.settings import SETTINGS, DrawSettings

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

    def read(self, settings: Settings) -> Iterator[Record | BadRecord]:
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

    def read(self, settings: Settings) -> Iterator[Record | BadRecord]:
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

    def read(self, settings: Settings) -> Iterator[Record | BadRecord]:
        """See `Records`.

        Raises:
            ValueError: the file as a whole is not what it should be.
        """
        for index, (place, found) in enumerate(self._source.pieces()):
            yield _record(index, place, found, settings)

    def changed(self) -> bool:
        """See `Records`."""
        return self._source.changed()


def _record(index: int, place: str, found: Fields | Malformed, settings: Settings) -> Record | BadRecord:
    try:
        if isinstance(found, Malformed):
            raise ValueError(found.reason)
        return _checked(index, found, settings)
    except ValueError as error:
        reason = str(error)
        return BadRecord(index, f"{place}: {reason if len(reason) <= _SHOWN else reason[:_SHOWN] + '...'}")


def _checked(index: int, found: Fields, settings: Settings) -> Record:
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
            drawing = record.drawing or settings.drawing
            tasks = [
                Task(first + k, record.index, k, record.prompt, seed + k, drawing, record.id, record.extra)
                for k in range(size)
            ]
        yield first, record, tasks
        first += size
