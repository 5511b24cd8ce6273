"""What a user passes: its types and ranges, checked at the door, and how errors show it."""

import importlib
import math
import operator
import random
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Literal

MAX_SEED = 2**63 - 1
MAX_PARALLEL_SIZE = 65536
WINDOWS = (1, 2, 4, 8, 16, 32)
Window = int | Literal["auto"]


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line, and without what a terminal would obey."""
    return _short.repr(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)


def integer(name: str, value: object, low: int, high: int, otherwise: str = "") -> int:
    """The value as an int; numpy's and torch's integers are taken, too.

    Args:
        otherwise: what else is allowed, in words that come before "an int".
    Raises:
        ValueError: it is no integer, or lies outside low .. high.
    """
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or isinstance(value, bool) or not low <= found <= high:
        raise ValueError(f"{name} must be {otherwise}an int in {low} .. {high}, got {shown(value)}")
    return found


def number(name: str, value: object, more: str = "") -> float:
    """The value as a finite float; ints and numpy's numbers are taken, too.

    Args:
        more: what else is demanded of it, in words for the error.
    Raises:
        ValueError: it is no finite number.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, str | bytes | bool) or not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number{more}, got {shown(value)}")
    return found


def several(values: object) -> list[object] | None:
    """The members of a sequence, or of numpy's or torch's arrays; None where a value is no such thing, but one."""
    if isinstance(values, str | bytes):
        return None
    found = isinstance(values, Sequence) or getattr(values, "ndim", 0) > 0
    return list(values) if found else None  # type: ignore[call-overload]


def seeds_of(seed: object, images: int, sampler: str) -> list[int]:
    """A seed for each of so many images: those given, or one and those that follow it; None begins with a random one.

    Raises:
        ValueError: a seed is out of range, or there are more or fewer than images.
    """
    given = several(seed)
    if given is None:
        first = random.getrandbits(62) if seed is None else integer("seed", seed, 0, MAX_SEED - images, "None or ")
        return list(range(first, first + images))
    if len(given) != images or sampler == "multinomial":
        raise ValueError(
            f"seed must be one int, or with the sampler 'gumbel' one for each of {images} images, got {len(given)}"
        )
    return [integer("seed", each, 0, MAX_SEED) for each in given]


def strings(prompts: object) -> list[str]:
    """Prompts as a list: one string, or several.

    Raises:
        ValueError: there are none, or what is given is not made of strings.
    """
    found = list(iterable_of_strings(prompts))
    if not found:
        raise ValueError("prompts must hold at least one string, got none")
    for prompt in found:
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be strings, got {prompt!r}")
    return found


def iterable_of_strings(prompts: object) -> Iterable[str]:
    """One string as a list of itself; what cannot be a sequence of prompts is refused.

    Raises:
        ValueError: it is a mapping or bytes, or cannot be iterated over.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be a string or strings, got {type(prompts).__name__}")
    return prompts


def check_negative(prompt: str | None) -> str | None:
    """A negative prompt; None where there is none, or only blanks.

    Raises:
        ValueError: it is no string.
    """
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"negative_prompt must be None or a string, got {prompt!r}")
    return prompt if prompt and prompt.strip() else None


def check_window(window: Window, sampler: str = "gumbel") -> Window:
    """The window, which is 1 with the sampler "multinomial": its draws follow each other, and are not keyed by position.

    Raises:
        ValueError: there is no such window, or it does not go with the sampler.
    """
    found = window if window == "auto" else _one_of(WINDOWS, window)
    if found is None:
        raise ValueError(f'window must be "auto" or one of {list(WINDOWS)}, got {window!r}')
    if sampler == "multinomial":
        if found not in ("auto", 1):
            raise ValueError(f"window must be 1 with the sampler 'multinomial', got {window}")
        return 1
    return found


def _one_of(allowed: Sequence[int], value: object) -> int | None:
    try:
        found = integer("", value, min(allowed), max(allowed))
    except ValueError:
        return None
    return found if found in allowed else None


MINI = "mini"
HINT_AT_MINI = (
    'Drawing with "mini", which knows coloured shapes only ("a large red circle on white"); '
    "a real Janus: --model deepseek-community/Janus-Pro-1B"
)

BackendName = Literal["auto", "reference", "torch", "triton"]
DtypeName = Literal["float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
LaunchName = Literal["auto", "graph", "compile", "eager"]
ImageFormat = Literal["jpg", "png", "webp"]
Quantization = Literal["int8", "fp8"]
WindowName = Literal["auto", "1", "2", "4", "8", "16", "32"]


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """Imports `module`.

    Args:
        extra: the extra of janus-dola that brings it.
        what: for the error: what needs it.
    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != module.split(".")[0]:
            raise
        raise ValueError(f"{what} needs {missing.name}: pip install 'janus-dola[{extra}]'") from None
