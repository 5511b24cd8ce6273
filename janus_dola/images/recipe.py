"""Files of images, or of codes, that carry their own recipe: format and metadata.

The recipe is JSON in the EXIF field ImageDescription, which JPEG, PNG and WebP all have. A file of codes (safetensors) has
it in its metadata.
"""

import io
import json
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, cast

from PIL import ExifTags, Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from janus_dola.arguments import (
    ImageFormat,
    Quantization,
    Window,
    check_max_images,
    check_window,
    integer,
    one_line,
    shown,
)
from janus_dola.images.files import refuse_existing, write_new
from janus_dola.models.storage import check_name, parse_dtype
from janus_dola.settings import SETTINGS, DrawSettings

CODES: ImageFormat = "safetensors"  # the format that holds codes
_RECIPE = "recipe"  # in the metadata of a file of codes
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
}
_MOST_BYTES, _MOST_PIXELS, _MOST_CHARACTERS = 2**26, 2**24, 2**20  # what is read: file, image, recipe
# What Pillow raises for files that are not whole, or made to do harm.
_FAULTS = (
    Image.DecompressionBombError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, SafetensorError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that is needed to draw an image again with the default sampler."""

    model: str
    prompt: str
    seed: int
    settings: DrawSettings
    dtype: str
    quantize: Quantization | None = None
    window: Window = "auto"  # codes per pass; in 16 bits as it was, since it decides an image's last bits
    revision: str | None = None  # branch, tag or commit in the model's repository, where one was named
    slots: int | None = None  # images per pass, in 16 bits; None where the image is the same for any
    weights: str | None = None  # 8 hex digits that tell weights apart, and 8 more for a lens

    def to_json(self) -> str:
        """Writes the recipe as one line of JSON; a lens's file is named without the folders above it."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        settings = own.pop("settings").to_json()
        if settings.get("lens") is not None:
            settings["lens"] = Path(settings["lens"]).name
        return json.dumps(own | settings, ensure_ascii=False)

    def summary(self) -> str:
        """Describes seed and settings in few words, for people."""
        return f"seed {self.seed}, {self.settings.summary()}"

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads what `to_json` wrote; other texts are a ValueError."""
        try:
            given = json.loads(text[: _MOST_CHARACTERS + 1])
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise ValueError(f"not a recipe of janus-dola: {text[:80]!r}")
        try:
            return cls(**_checked(given))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(f"not a recipe of janus-dola: {one_line(error)}") from error


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a recipe, each checked for its type and range."""
    own = {field.name for field in fields(Recipe)} - {"settings"}
    known = own | SETTINGS.keys()
    needed = {"model", "prompt", "seed", "dtype", "cfg_weight", "temperature", "contrast"}
    if not needed <= given.keys():
        raise ValueError(f"its keys must include {', '.join(sorted(needed))}, got {', '.join(given)[:80]!r}")
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ValueError(f"its keys must be settings that exist, got {shown(unknown)}")
    for name in ("model", "prompt", "dtype"):
        if not isinstance(given[name], str):
            raise ValueError(f"{name} must be a string, got {given[name]!r}")
    for name in ("revision", "weights"):
        if not isinstance(given.get(name), str | None):
            raise ValueError(f"{name} must be null or a string, got {given[name]!r}")
    check_max_images(given.get("slots"), "slots")
    integer("seed", given["seed"], 0, 2**64 - 1)
    parse_dtype(given["dtype"])
    check_name(given.get("quantize"))
    check_window(given.get("window", "auto"))
    settings = DrawSettings().changed({name: value for name, value in given.items() if name not in own})
    return {name: value for name, value in given.items() if name in own} | {"settings": settings}


def encode_image(
    image: Image.Image, image_format: ImageFormat, recipe: Recipe | None, quality: int | None = None
) -> bytes:
    """Encodes an image with its recipe as the content of a file; the same bytes for the same image and recipe.

    A recipe that is too long for the format (JPEG: 64 kB) is a ValueError; None writes no metadata. A `quality` in 0 .. 100
    makes JPEG and WebP smaller; WebP is lossless at 100.
    """
    if image_format not in _SAVE_OPTIONS:
        raise ValueError(f"format must be one of {[*_SAVE_OPTIONS, CODES]}, got {image_format!r}")
    exif = Image.Exif()
    if recipe is not None:
        exif[ExifTags.Base.ImageDescription] = recipe.to_json().encode("utf-8")
        exif[ExifTags.Base.Software] = "janus-dola"
    options = dict(_SAVE_OPTIONS[image_format])
    if quality is not None:  # PNG looks at neither, JPEG at the first
        options |= {"quality": quality, "lossless": quality == 100}
    content = io.BytesIO()
    image.save(content, format=image_format.replace("jpg", "jpeg"), exif=exif, **options)
    return content.getvalue()


def encode_codes(tokens: Tensor, painter_inputs: Mapping[str, Tensor], recipe: Recipe | None) -> bytes:
    """Encodes codes [T], and what a model that paints them takes, as the content of a .safetensors file."""
    metadata = None if recipe is None else {_RECIPE: recipe.to_json()}
    return save_tensors({"tokens": tokens, **painter_inputs}, metadata)


def save_image(image: Image.Image, path: Path, recipe: Recipe | None, overwrite: bool = True) -> None:
    """Writes an image with its recipe. The format follows from the ending of `path`; errors are as for `DrawnImage.save`."""
    content = encode_image(image, cast(ImageFormat, path.suffix[1:]), recipe)
    refuse_existing([path], overwrite)
    write_new(path, content, overwrite)


def read_recipe(path: Path) -> Recipe:
    """Reads the recipe an image was drawn by; a ValueError if the file is no image, nor one of codes, or carries none."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        raise ValueError(f"{path} carries no recipe of janus-dola: it is no file of at most {_MOST_BYTES} bytes")
    with path.open("rb") as file:
        try:
            description = _of_codes(path) if path.suffix == f".{CODES}" else _of_image(file)
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"{path} is not an image") from error
        except _FAULTS as error:
            raise ValueError(f"{path} carries no recipe of janus-dola: {one_line(error)}") from error
    if description is None:
        raise ValueError(f"{path} carries no recipe of janus-dola in its metadata")
    try:
        return Recipe.from_json(description)
    except ValueError as error:
        raise ValueError(f"{path} carries {error}") from error


def _of_codes(path: Path) -> str | None:
    with safe_open(path, "pt") as codes:
        return (codes.metadata() or {}).get(_RECIPE)


def _of_image(file: IO[bytes]) -> str | None:
    with Image.open(file, formats=["JPEG", "PNG", "WEBP"]) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        description = image.getexif().get(ExifTags.Base.ImageDescription)
    if isinstance(description, str):  # Pillow reads EXIF text as latin-1, whatever it is
        description = description.encode("latin-1")
    return description.decode("utf-8") if isinstance(description, bytes) else None
