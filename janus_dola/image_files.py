"""Image files that carry their own recipe: name, format and metadata.

The recipe is JSON in the EXIF field ImageDescription, which JPEG, PNG and WebP all have.
"""

import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from PIL import ExifTags, Image

from janus_dola.config import DoLaConfig
from janus_dola.models.quantize import Quantization

ImageFormat = Literal["jpg", "png", "webp"]
_STUB_LENGTH = 48
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
}


@dataclass(frozen=True)
class Recipe:
    """All that is needed to draw an image again with the default sampler."""

    model: str
    prompt: str
    seed: int
    cfg_weight: float
    temperature: float
    dola: DoLaConfig | None  # None is the plain baseline
    dtype: str
    quantize: Quantization | None = None

    def to_json(self) -> str:
        """The recipe as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is not a recipe.
        """
        try:
            fields = json.loads(text)
            dola = fields.pop("dola")
            return cls(**fields, dola=DoLaConfig(**dola) if dola is not None else None)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a recipe of janus-dola: {text[:80]!r}") from error


def file_name(index: int, prompt: str, k: int, image_format: ImageFormat = "jpg") -> str:
    """`{idx}_{prompt_stub}_p{k}.jpg`: safe for any prompt, of which it keeps letters and digits."""
    stub = re.sub(r"\W+", "_", prompt[: 2 * _STUB_LENGTH]).strip("_")[:_STUB_LENGTH]
    return f"{index}_{stub or 'image'}_p{k}.{image_format}"


def encode_image(image: Image.Image, image_format: ImageFormat, recipe: Recipe) -> bytes:
    """The content of a file with an image and its recipe; the same bytes for the same image and recipe.

    Raises:
        ValueError: another format than jpg, png or webp, or a recipe that is too long for it (JPEG: 64 kB).
    """
    if image_format not in get_args(ImageFormat):
        raise ValueError(f"format must be one of {list(get_args(ImageFormat))}, got {image_format!r}")
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = recipe.to_json().encode("utf-8")
    exif[ExifTags.Base.Software] = "janus-dola"
    content = io.BytesIO()
    name = "jpeg" if image_format == "jpg" else image_format
    image.save(content, format=name, exif=exif, **_SAVE_OPTIONS[image_format])
    return content.getvalue()


def save_image(image: Image.Image, path: Path, recipe: Recipe) -> None:
    """Writes an image with its recipe; the format follows from the ending of `path`: jpg, png or webp.

    Raises:
        ValueError: another ending, or as for `encode_image`.
    """
    path.write_bytes(encode_image(image, cast(ImageFormat, path.suffix[1:]), recipe))


def read_recipe(path: Path) -> Recipe:
    """The recipe an image was drawn by.

    Raises:
        ValueError: the file is not an image, or carries no recipe.
    """
    try:
        with Image.open(path) as image:
            description = image.getexif().get(ExifTags.Base.ImageDescription)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image") from error
    if description is None:
        raise ValueError(f"{path} carries no recipe of janus-dola in its metadata")
    if isinstance(description, str):  # Pillow reads EXIF text as latin-1, whatever it is
        description = description.encode("latin-1")
    return Recipe.from_json(description.decode("utf-8"))
