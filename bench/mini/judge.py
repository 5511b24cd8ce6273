"""A classical judge of generated pictures: which scene does a picture show? No network, only colours and geometry.

1. The background is the named background nearest to the median of the border pixels.
2. A pixel belongs to the shape where it lies nearer to some named colour than to the background; the shape's colour is
   the one nearest to the median of those pixels.
3. The size follows from the longer side of the shape's bounding box, the shape from its overlap (intersection over
   union) with each ideal shape drawn into that box.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from bench.mini.pictures import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    draw_shape,
    parse_caption,
)

_MIN_PIXELS = 40  # less than half of the smallest triangle


@dataclass(frozen=True)
class Verdict:
    """What was seen, and per attribute that the caption names whether it is right."""

    seen: Scene
    right: dict[str, bool]

    @property
    def all_right(self) -> bool:
        """Says whether every attribute that the caption names is right."""
        return all(self.right.values())


def _nearest(colour: np.ndarray, named: dict[str, tuple[int, int, int]]) -> str:
    return min(named, key=lambda name: float(np.square(colour - np.array(named[name])).sum()))


def _distance(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.square(pixels - np.array(colour)).sum(-1)


def _overlap(mask: np.ndarray, shape: str) -> float:
    """Returns intersection over union of a cropped mask with the ideal shape in the same box."""
    height, width = mask.shape
    ideal = Image.new("L", (4 * width, 4 * height))
    draw_shape(ImageDraw.Draw(ideal), shape, (0, 0, 4 * width - 1, 4 * height - 1), 255)
    filled = np.asarray(ideal.resize((width, height), Image.Resampling.BOX)) > 127
    return float((mask & filled).sum() / (mask | filled).sum())


def look(picture: Image.Image) -> Scene:
    """Returns the scene that a picture shows; only the background is named where no shape is seen."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    background = _nearest(np.median(border, axis=0), BACKGROUNDS)
    to_colour = np.stack([_distance(pixels, colour) for colour in COLOURS.values()])
    mask = to_colour.min(0) < _distance(pixels, BACKGROUNDS[background])
    mask = _without_specks(mask)
    if mask.sum() < _MIN_PIXELS:
        return Scene(background=background)
    colour = _nearest(np.median(pixels[mask], axis=0), COLOURS)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 64 / picture.width
    border_between = (max(SIZES["small"]) + min(SIZES["large"])) / 2
    size = "large" if max(crop.shape) * scale > border_between else "small"
    shape = max(SHAPES, key=lambda name: _overlap(crop, name))
    return Scene(size, colour, shape, background)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Keeps a pixel of the mask where at least three of its eight neighbours belong to it too."""
    padded = np.pad(mask, 1).astype(np.int8)
    height, width = mask.shape
    around = sum(padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1))
    return mask & (around >= 3)


def check(picture: Image.Image, text: str) -> Verdict:
    """Scores a picture against its caption, attribute by attribute; attributes the caption leaves open are not scored."""
    seen, described = look(picture), parse_caption(text)
    named = [name for name in ATTRIBUTES if getattr(described, name) is not None]
    return Verdict(seen, {name: getattr(seen, name) == getattr(described, name) for name in named})
