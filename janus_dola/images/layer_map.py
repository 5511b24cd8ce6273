"""Draws what DoLa did: which layer was contrasted at each code, and how far it diverged.

Divergences crowd at both ends of their range [0, ln 2]: in the mini model half of them lie within a thousandth of ln 2. So
colours follow logit(JSD / ln 2), on one scale for all images: equal steps of colour from 0.1% to 1% to 10%, and from 90% to
99% to 99.9%.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; then 25 that lie far from these and
# from each other in CIELAB, those for layers 16, 18 ... 30 farthest.
_PALETTE = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66),
    (220, 20, 140), (0, 240, 140), (160, 140, 240), (140, 40, 40), (180, 220, 140), (80, 240, 240), (0, 100, 100),
    (20, 80, 0), (100, 60, 120), (80, 40, 160), (120, 120, 0), (240, 0, 80), (240, 0, 0), (240, 200, 160),
    (180, 240, 0), (0, 0, 240), (160, 60, 240), (0, 240, 0), (240, 120, 120), (240, 20, 220), (240, 120, 240),
    (100, 80, 40), (240, 200, 240), (80, 160, 0), (140, 20, 80),
)  # fmt: skip
_TONES = (0, -0.45, 0.45, -0.7)  # of each 32 layers: how far towards black, or towards white
_RAMP = ((255, 250, 232), (252, 205, 110), (243, 126, 60), (186, 40, 80), (84, 15, 109), (13, 8, 45))  # small to large
_DECADES = 5  # decades that the scale spans on both sides of ln 2 / 2
_LN2 = math.log(2)
_INK, _SOFT, _PAPER, _LINE = (30, 30, 30), (100, 100, 100), (255, 255, 255), (200, 200, 200)
_SIDE, _GAP, _TOP = 256, 16, 28
_TICKS = {-5: "0.001%", -2: "1%", 0: "50%", 2: "99%", 5: "99.999%"}  # labels by log10 of the odds; shares of ln 2


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Pillow's own font."""
    return ImageFont.load_default(size)


def colour_of_layer(layer: int) -> Colour:
    """Returns the colour of a layer in 0 .. 127, the same in all pictures and pages; all differ, the first 32 clearly."""
    tones, place = divmod(layer, len(_PALETTE))
    tone = _TONES[tones % len(_TONES)]
    red, green, blue = (
        round(part + (255 - part) * tone if tone > 0 else part * (1 + tone)) for part in _PALETTE[place]
    )
    return red, green, blue


def columns_of(codes: int, image: Image.Image) -> int:
    """Returns how many codes an image has per row; each code covers a square of pixels."""
    return round(math.sqrt(codes * image.width / image.height))


def level_of_jsd(jsd: Tensor) -> Tensor:
    """Returns the place of divergences (nats) on the colour scale: 0 (at most 0.001% of ln 2) .. 1 (at least 99.999%)."""
    share = (jsd.double() / _LN2).clamp(0, 1)
    return (torch.logit(share) / math.log(10) / (2 * _DECADES) + 0.5).clamp(0, 1)


def heat(level: float) -> Colour:
    """Returns the colour of a level: from near white (0) over orange to near black (1)."""
    place = min(max(level, 0.0), 1.0) * (len(_RAMP) - 1)
    i = min(int(place), len(_RAMP) - 2)
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True))
    return red, green, blue


def css(colour: Colour) -> str:
    """Returns a colour as style sheets write it."""
    return "rgb({}, {}, {})".format(*colour)


def css_ramp() -> str:
    """Returns the colour scale, from small to large divergences, as a style sheet's gradient."""
    return f"linear-gradient(90deg, {', '.join(map(css, _RAMP))})"


def counts_of(premature_layers: Tensor) -> dict[int, int]:
    """Counts the codes that were contrasted with each layer."""
    layers, counts = premature_layers.unique(return_counts=True)
    return dict(zip(layers.tolist(), counts.tolist(), strict=True))


def layer_map(
    image: Image.Image,
    premature_layers: Tensor,
    jsd: Tensor,
    layers: Sequence[int],
    prompt: str = "",
    settings: str = "",
) -> Image.Image:
    """Draws an image beside a map of the layer chosen at each code and a map of that layer's divergence.

    Args:
        image: the drawn image.
        premature_layers: [T], from `DrawnImage`.
        jsd: [T], nats.
        layers: candidate layers, for the legend; empty if there was no contrast.
        prompt, settings: text below, cut where it is too long. Pillow's font has ASCII only: other letters are boxes.
    Returns:
        an RGB picture, 832 x 376 pixels, with a legend.
    """
    chosen = diverged = Image.new("RGB", (_SIDE, _SIDE), (244, 244, 244))
    if layers:
        columns = columns_of(len(jsd), image)
        chosen = _grid([colour_of_layer(layer) for layer in premature_layers.tolist()], columns)
        diverged = _grid([heat(level) for level in level_of_jsd(jsd).tolist()], columns)
    else:
        centre = _SIDE // 2, _SIDE // 2
        ImageDraw.Draw(chosen).text(centre, "no contrast", fill=_SOFT, font=font(16), anchor="mm")
    drawn = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    panels = {"drawn": drawn, "layer contrasted with": chosen, "its JSD from the final layer": diverged}
    width, below = len(panels) * _SIDE + (len(panels) + 1) * _GAP, _TOP + _SIDE + 8
    sheet = Image.new("RGB", (width, below + 84), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(panels.items()):
        left = _GAP + i * (_SIDE + _GAP)
        canvas.text((left, 5), title, fill=_INK, font=font(14))
        sheet.paste(panel, (left, _TOP))
        canvas.rectangle((left - 1, _TOP - 1, left + _SIDE, _TOP + _SIDE), outline=_LINE)
    if layers:
        _legend_of_layers(canvas, layers, premature_layers, _GAP + _SIDE + _GAP, below)
        _legend_of_jsd(canvas, _GAP + 2 * (_SIDE + _GAP), below)
    for y, text, size, colour in ((below + 40, prompt, 14, _INK), (below + 60, settings, 12, _SOFT)):
        canvas.text((_GAP, y), _fitting(canvas, text, size, width - 2 * _GAP), fill=colour, font=font(size))
    return sheet


def small_map(premature_layers: Tensor, jsd: Tensor) -> Image.Image:
    """Draws the layer chosen at each code, and to the right how far it diverged, with one pixel per code.

    Args:
        premature_layers, jsd: [T], from `DrawnImage`; layers below 128.
    Returns:
        a palette picture with ceil(sqrt T) rows and twice as many columns. Pixels on the left are layer numbers, pixels on
        the right 128 + round(127 * level_of_jsd).
    """
    side = math.isqrt(len(jsd) - 1) + 1
    picture = Image.new("P", (2 * side, side))
    palette = [*map(colour_of_layer, range(128)), *(heat(level / 127) for level in range(128))]
    picture.putpalette(list(itertools.chain(*palette)))
    levels = (128 + (127 * level_of_jsd(jsd)).round()).to(premature_layers.dtype)
    for left, values in ((0, premature_layers.tolist()), (side, levels.tolist())):
        for code, value in enumerate(values):
            picture.putpixel((left + code % side, code // side), value)
    return picture


def _grid(colours: list[Colour], columns: int) -> Image.Image:
    """Draws one enlarged pixel per code, in raster order."""
    small = Image.new("RGB", (columns, len(colours) // columns))
    small.putdata(colours)
    return small.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)


def _legend_of_layers(
    canvas: ImageDraw.ImageDraw, layers: Sequence[int], premature_layers: Tensor, left: int, y: int
) -> None:
    rows, in_a_row, size = (2, 4, 12) if len(layers) <= 8 else (3, 6, 9)
    counts, room = counts_of(premature_layers), rows * in_a_row
    for i, layer in enumerate(layers[:room]):
        x, top = left + i % in_a_row * (_SIDE // in_a_row), y + i // in_a_row * (size + 4)
        if i == room - 1 and len(layers) > room:
            canvas.text((x, top - 2), f"+{len(layers) - i} more", fill=_SOFT, font=font(size))
            break
        canvas.rectangle((x, top, x + size - 1, top + size - 1), fill=colour_of_layer(layer))
        share = counts.get(layer, 0) / len(premature_layers)
        canvas.text((x + size + 2, top - 2), f"{layer}: {share:.0%}", fill=_INK, font=font(size))


def _legend_of_jsd(canvas: ImageDraw.ImageDraw, left: int, y: int) -> None:
    for x in range(_SIDE):
        canvas.line((left + x, y, left + x, y + 9), fill=heat(x / (_SIDE - 1)))
    for logit, text in _TICKS.items():
        x = left + round((_SIDE - 1) * (logit / _DECADES + 1) / 2)
        canvas.line((x, y + 9, x, y + 12), fill=_SOFT)
        anchor = "la" if logit == -_DECADES else "ra" if logit == _DECADES else "ma"
        canvas.text((x, y + 13), text, fill=_INK, font=font(10), anchor=anchor)
    canvas.text((left, y + 25), "of ln 2, the largest there is", fill=_SOFT, font=font(10))


def _fitting(canvas: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """Cuts a line of text where it is too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    if canvas.textlength(line, font=font(size)) <= width:
        return line
    kept = 0
    while canvas.textlength(line[: kept + 1] + "...", font=font(size)) <= width:
        kept += 1
    return line[:kept] + "..."
