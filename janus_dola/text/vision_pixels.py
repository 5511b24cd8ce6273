"""Turns pictures into the pixels that the vision tower takes, as Janus was trained on them."""

from collections.abc import Sequence
from math import isfinite

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from janus_dola.models.words import settings_beside

_SETTINGS = "preprocessor_config.json"
_MIDDLE = (0.5, 0.5, 0.5)  # mean and deviation that the published checkpoints were trained with
_LEAST_SIDE = 14  # pixels; the shorter side of a very long image is no less
_BORDER = (127, 127, 127)  # grey, around an image that is no square


def pixels(images: Sequence[Image.Image], size: int, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Prepares pictures for the vision tower, [n, 3, size, size] float32: each in a grey square, then normalised.

    Mean and deviation come from the `preprocessor_config.json` in the tokenizer's folder, 0.5 without one.

    Args:
        images: n images in any mode and size; a camera's rotation is undone, and what is transparent lies on white.
        size: a side of the square and the longer side of each image, in pixels.
    Raises:
        ValueError: an image has no pixels, or the file does not hold three numbers.
    """
    mean, deviation = (_by_channel(tokenizer, name) for name in ("image_mean", "image_std"))
    stacked = torch.from_numpy(np.stack([np.asarray(_square(_rgb(image), size)) for image in images]))
    return (stacked.movedim(-1, 1) / 255 - mean) / deviation


def _by_channel(tokenizer: PreTrainedTokenizerBase, name: str) -> Tensor:
    """Reads a number per colour channel: [3, 1, 1] float32."""
    values = settings_beside(tokenizer, _SETTINGS).get(name, _MIDDLE)
    known = isinstance(values, list | tuple) and len(values) == 3 and all(type(x) in (int, float) for x in values)
    if not known or not all(isfinite(x) for x in values) or (name == "image_std" and min(values) <= 0):
        raise ValueError(
            f"{name} in {_SETTINGS} must be three finite numbers, and image_std above 0, got {str(values)[:80]}"
        )
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"images must have pixels, got one of {image.width} x {image.height}")
    mode, image = image.mode, ImageOps.exif_transpose(image)
    # "I" has 16 bits, or 8 if it holds no more; Pillow would cut off what is brighter than 8 bits hold.
    if mode.startswith("I"):
        levels = np.asarray(image, np.int64).clip(0, 65535)
        wide = mode != "I" or levels.max() > 255
        image = Image.fromarray((levels // 257 if wide else levels).astype(np.uint8))
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    width, height = (max(round(side * scale), _LEAST_SIDE) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), _BORDER)
    square.paste(small, ((size - width) // 2, (size - height) // 2))
    return square
