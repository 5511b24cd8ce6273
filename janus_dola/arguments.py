"""Checks the types and ranges of what a user passes, and shows values in errors."""

import functools
import importlib
import math
import operator
import random
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, TypeVar

MINI = "mini"
HINT_AT_MINI = (
    'Drawing with "mini", which knows coloured shapes only ("a large red circle on white"); '
    "a real Janus: --model deepseek-community/Janus-Pro-1B"
)

BackendName = Literal["auto", "reference", "torch", "triton"]
DtypeName = Literal["float32", "bfloat16", "float16", "float64", "fp32", "bf16", "fp16", "fp64"]
LaunchName = Literal["auto", "graph", "compile", "eager"]
ImageFormat = Literal["jpg", "png", "webp", "safetensors"]  # pictures, and codes in place of them
Quantization = Literal["int8", "fp8"]
WindowName = Literal["auto", "1", "2", "4", "8", "16", "32"]

MAX_SEED = 2**63 - 1
MAX_PARALLEL_SIZE = 65536
WINDOWS = (1, 2, 4, 8, 16, 32)
Window = int | Literal["auto"]
_Target = TypeVar("_Target", bound=Callable)
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def shown(value: object) -> str:
    """Returns a value as a message shows it: short, on one line, without control characters."""
    return _short.repr(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)


def hint_at_locale() -> str:
    """Returns what a message adds where words do not fit a file name or the command line; nothing where those are UTF-8."""
    encoding = sys.getfilesystemencoding()
    return "" if encoding == "utf-8" else f"; file names here are {encoding}, by the locale: set PYTHONUTF8=1"


def one_line(error: Exception, longest: int = 200) -> str:
    """Returns an error's text on one line of at most `longest` characters; its type where it has no text."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def integer(name: str, value: object, low: int, high: int, otherwise: str = "") -> int:
    """Returns a value as an int in low .. high; numpy's and torch's integers are valid, too.

    The error for others says what is allowed: `otherwise` an int.
    """
    try:
        whole = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool) or not low <= whole <= high:
        raise ValueError(f"{name} must be {otherwise}an int in {low} .. {high}, got {shown(value)}")
    return whole


def number(name: str, value: object, more: str = "") -> float:
    """Returns a finite number as a float; ints and numpy's are valid, too. The error adds what `more` the caller demands."""
    try:
        real = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        real = math.nan
    if isinstance(value, str | bytes | bool) or not math.isfinite(real):
        raise ValueError(f"{name} must be a finite number{more}, got {shown(value)}")
    return real


def several(values: object) -> list[object] | None:
    """Returns the elements of a sequence or array as a list, or None for a single value."""
    if isinstance(values, str | bytes):
        return None
    if isinstance(values, Sequence) or getattr(values, "ndim", 0) > 0:
        return list(values)  # type: ignore[call-overload]
    return None


def last_seed(images: int) -> int:
    """Returns the largest seed from which so many images can count up: the last of them has `MAX_SEED`."""
    return MAX_SEED - images + 1


def seeds_of(seed: object, images: int, sampler: str) -> list[int]:
    """Returns one seed per image: the given seeds, or a single seed and its successors. None picks the first at random.

    With the sampler "multinomial" None is -1 for every image, which stands for torch's global generator.

    Raises:
        ValueError: a seed is out of range, or there are more or fewer seeds than images.
    """
    given = several(seed)
    if seed is None and sampler == "multinomial":
        return [-1] * images
    if given is None:
        first = random.getrandbits(62) if seed is None else integer("seed", seed, 0, last_seed(images), "None or ")
        return list(range(first, first + images))
    if len(given) != images or sampler == "multinomial":
        raise ValueError(
            f"seed must be one int, or with the sampler 'gumbel' one for each of {images} images, got {len(given)}"
        )
    return [integer("seed", each, 0, MAX_SEED) for each in given]


def strings(prompts: object) -> list[str]:
    """Returns one string or several, at least one, as a list."""
    texts = list(iterable_of_strings(prompts))
    if not texts:
        raise ValueError("prompts must hold at least one string, got none")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"prompts must be strings, got {text!r}")
    return texts


def iterable_of_strings(prompts: object) -> Iterable[str]:
    """Returns prompts to iterate over; a single string becomes a list. Mappings and bytes are a ValueError."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts must be a string or strings, got {type(prompts).__name__}")
    return prompts


def check_negative(prompt: str | None) -> str | None:
    """Returns a negative prompt, or None if it is None or blank."""
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"negative_prompt must be None or a string, got {prompt!r}")
    return prompt if prompt and prompt.strip() else None


def check_window(window: Window, sampler: str = "gumbel") -> Window:
    """Returns a window that exists. With the sampler "multinomial", whose draws follow each other, it is always 1."""
    try:
        codes = window if window == "auto" else WINDOWS[WINDOWS.index(integer("window", window, 1, WINDOWS[-1]))]
    except ValueError:
        raise ValueError(f'window must be "auto" or one of {list(WINDOWS)}, got {window!r}') from None
    if sampler == "multinomial":
        if codes not in ("auto", 1):
            raise ValueError(f"window must be 1 with the sampler 'multinomial', got {window}")
        return 1
    return codes


def check_max_images(images: int | None, name: str = "max_images") -> int | None:
    """Returns a number of images that are drawn at once; None is as many as fit, or as there are."""
    return None if images is None else integer(name, images, 1, MAX_PARALLEL_SIZE, "None or ")


def takes_old_name(old: str, new: str) -> Callable[[_Target], _Target]:
    """Lets a function, or a class' constructor, take the first name of a parameter as well; both names are a ValueError."""

    def decorate(target: Any) -> Any:
        if isinstance(target, type):
            target.__init__ = decorate(target.__init__)  # type: ignore[misc]
            return target

        @functools.wraps(target)
        def renamed(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise ValueError(f"{new} must be left out where {old} is given, got {shown(kwargs[new])}")
                kwargs[new] = kwargs.pop(old)
            return target(*args, **kwargs)

        return renamed

    return decorate


takes_engine = takes_old_name("engine", "launch")


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """Imports a module that an extra of janus-dola installs; if it is missing, the ValueError says `what` needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ValueError(f"{what} needs {missing.name}: pip install 'janus-dola[{extra}]'") from None
