"""Pictures of what DoLa did: which layer was contrasted at each code of an image, and how far it diverged."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]

# Okabe and Ito's colours, told apart with any kind of colour vision.
_PALETTE = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_SIDE, _GAP, _TEXT = 256, 16, 16


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def heat(value: float) -> Colour:
    """From near white (0) over orange to dark red (1)."""
    value = min(max(value, 0.0), 1.0)
    stops = ((255, 250, 235), (250, 160, 60), (130, 10, 30))
    low, high, part = (stops[0], stops[1], 2 * value) if value < 0.5 else (stops[1], stops[2], 2 * value - 1)
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def layer_colours(layers: Sequence[int]) -> dict[int, Colour]:
    """A colour for each layer."""
    return {layer: _PALETTE[i % len(_PALETTE)] for i, layer in enumerate(sorted(set(layers)))}


def _grid(colours: list[Colour]) -> Image.Image:
    """One pixel per code, in raster order, enlarged."""
    side = math.isqrt(len(colours))
    small = Image.new("RGB", (side, side))
    small.putdata(colours)
    return small.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)


def layer_map(image: Image.Image, premature_layers: Tensor, jsd: Tensor, layers: Sequence[int]) -> Image.Image:
    """An image beside a map of the layer chosen at each code and a map of its divergence.

    Args:
        image: what was drawn.
        premature_layers: [T], from `GenerationOutput`; T a square number.
        jsd: [T], nats.
        layers: the candidates, for the legend.
    Returns:
        an RGB picture, 832 x 320 pixels, with a legend.
    """
    colours = layer_colours([*layers, *premature_layers.tolist()])
    top = float(jsd.max()) or 1.0  # the divergence shown darkest
    panels = [
        ("drawn", image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST)),
        ("layer contrasted with", _grid([colours[layer] for layer in premature_layers.tolist()])),
        ("its JSD from the final layer", _grid([heat(value / top) for value in jsd.tolist()])),
    ]
    width = len(panels) * _SIDE + (len(panels) + 1) * _GAP
    sheet = Image.new("RGB", (width, _SIDE + 4 * _TEXT), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(panels):
        left = _GAP + i * (_SIDE + _GAP)
        canvas.text((left, 5), title, fill=_INK, font=font(14))
        sheet.paste(panel, (left, 2 * _TEXT - 4))
        canvas.rectangle((left - 1, 2 * _TEXT - 5, left + _SIDE, 2 * _TEXT - 4 + _SIDE), outline=(200, 200, 200))
    below = 2 * _TEXT + _SIDE + 4
    _legend_of_layers(canvas, colours, premature_layers, _GAP + _SIDE + _GAP, below)
    _legend_of_jsd(canvas, top, _GAP + 2 * (_SIDE + _GAP), below)
    return sheet


def colour_of_layer(layer: int) -> Colour:
    """A layer's colour in `small_map`, whatever the other layers: neighbours in steps of one or two differ."""
    return _PALETTE[layer % len(_PALETTE)]


def counts_of(premature_layers: Tensor) -> dict[int, int]:
    """How many codes were contrasted with each layer."""
    layers, counts = premature_layers.unique(return_counts=True)
    return dict(zip(layers.tolist(), counts.tolist(), strict=True))


def small_map(premature_layers: Tensor, jsd: Tensor) -> Image.Image:
    """The layer chosen at each code, and to the right of it how far it diverged, one pixel a code.

    Args:
        premature_layers, jsd: [T], from `GenerationOutput`; layers below 128.
    Returns:
        a palette picture of ceil(sqrt T) rows and twice as many columns. Its left half holds the number of the layer itself,
        its right half 128 + round(127 * jsd / max jsd).
    """
    side = math.isqrt(len(jsd) - 1) + 1
    picture = Image.new("P", (2 * side, side))
    picture.putpalette(
        [
            *(part for layer in range(128) for part in colour_of_layer(layer)),
            *(part for level in range(128) for part in heat(level / 127)),
        ]
    )
    top = float(jsd.max()) or 1.0
    levels = (128 + (127 * jsd / top).round()).to(premature_layers.dtype)
    for left, values in ((0, premature_layers.tolist()), (side, levels.tolist())):
        for code, value in enumerate(values):
            picture.putpixel((left + code % side, code // side), value)
    return picture


def _legend_of_layers(
    canvas: ImageDraw.ImageDraw, colours: dict[int, Colour], premature_layers: Tensor, left: int, y: int
) -> None:
    step = _SIDE // max(4, len(colours))
    for i, (layer, colour) in enumerate(colours.items()):
        share = (premature_layers == layer).float().mean().item()
        x = left + i * step
        canvas.rectangle((x, y, x + 11, y + 11), fill=colour)
        canvas.text((x + 15, y - 2), f"{layer}: {share:.0%}", fill=_INK, font=font(12))


def _legend_of_jsd(canvas: ImageDraw.ImageDraw, top: float, left: int, y: int) -> None:
    for x in range(100):
        canvas.line((left + 16 + x, y, left + 16 + x, y + 11), fill=heat(x / 99))
    canvas.text((left, y - 2), "0", fill=_INK, font=font(12))
    canvas.text((left + 122, y - 2), f"{top:.3f} nats", fill=_INK, font=font(12))
