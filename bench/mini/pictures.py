"""Captioned pictures of one shape on a plain background: what the mini model learns to draw.

A `Scene` is four attributes (144 combinations); its position and extent vary a little. Pillow draws it, `caption` says it in
words, naming all attributes or some of them, and `parse_caption` reads the words back.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass, fields

from PIL import Image, ImageDraw

IMAGE_SIZE = 64
_OVERSAMPLING = 4

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 40),
    "purple": (150, 50, 190),
    "orange": (245, 130, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
SIZES = {"small": (22, 26), "large": (38, 44)}  # the two extents of each, in pixels
_SHIFTS = {"small": (-12, -4, 4, 12), "large": (-8, 0, 8)}  # of the centre from the middle, in pixels


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `None` where a caption leaves an attribute open."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    background: str | None = None


ATTRIBUTES = tuple(field.name for field in fields(Scene))


def random_scene(rng: random.Random) -> Scene:
    """Draws a scene with every attribute chosen uniformly."""
    return Scene(
        rng.choice(tuple(SIZES)), rng.choice(tuple(COLOURS)), rng.choice(SHAPES), rng.choice(tuple(BACKGROUNDS))
    )


def caption(scene: Scene) -> str:
    """Puts a scene into words: "a large red circle on white"; open attributes are left out (the shape becomes "shape")."""
    words = [word for word in (scene.size, scene.colour) if word] + [scene.shape or "shape"]
    article = "an" if words[0][0] in "aeiou" else "a"
    ending = f" on {scene.background}" if scene.background else ""
    return f"{article} {' '.join(words)}{ending}"


def random_caption(scene: Scene, rng: random.Random) -> str:
    """Puts a scene into words; one time in three some attributes other than colour and shape are left out."""
    if rng.random() < 2 / 3:
        return caption(scene)
    size = scene.size if rng.random() < 0.5 else None
    background = scene.background if rng.random() < 0.5 else None
    return caption(Scene(size, scene.colour, scene.shape, background))


def parse_caption(text: str) -> Scene:
    """Reads the attributes that a caption names, and passes over words that it does not know."""
    words = text.lower().replace(",", " ").replace(".", " ").split()

    def named(known: Collection[str]) -> str | None:
        return next((word for word in words if word in known), None)

    return Scene(named(SIZES), named(COLOURS), named(SHAPES), named(BACKGROUNDS))


def outline(shape: str, box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """Returns the corners of a polygonal shape that fills `box` (left, top, right, bottom)."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    cross = [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1)]
    unit: dict[str, list[tuple[float, float]]] = {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "triangle": [(0.5, 0), (1, 1), (0, 1)],
        "cross": [(x / 3, y / 3) for x, y in cross],
    }
    return [(left + x * width, top + y * height) for x, y in unit[shape]]


def draw_shape(
    canvas: ImageDraw.ImageDraw, shape: str, box: tuple[float, float, float, float], fill: int | tuple[int, int, int]
) -> None:
    """Fills `shape` into `box` on a canvas."""
    if shape == "circle":
        canvas.ellipse(box, fill=fill)
    else:
        canvas.polygon(outline(shape, box), fill=fill)


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Draws an anti-aliased RGB picture of a fully named scene, 64 x 64 pixels; `rng` picks position and extent."""
    if scene.size is None or scene.colour is None or scene.shape is None or scene.background is None:
        raise ValueError(f"scene must name every attribute to be drawn, got {scene}")
    extent = rng.choice(SIZES[scene.size])
    x, y = (IMAGE_SIZE / 2 + rng.choice(_SHIFTS[scene.size]) for _ in range(2))
    left, top = _OVERSAMPLING * (x - extent / 2), _OVERSAMPLING * (y - extent / 2)
    box = (left, top, left + _OVERSAMPLING * extent, top + _OVERSAMPLING * extent)
    side = IMAGE_SIZE * _OVERSAMPLING
    picture = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw_shape(ImageDraw.Draw(picture), scene.shape, box, COLOURS[scene.colour])
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
