"""`janus-dola demo`: baseline beside DoLa for the same prompts and seeds, and a map of what DoLa did in each image."""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from janus_dola.arguments import MINI
from janus_dola.images.files import make_folder, refuse_existing, write_new
from janus_dola.images.layer_map import font
from janus_dola.images.recipe import encode_image
from janus_dola.pipeline import JanusDoLa, check_before_loading

PROMPTS = (
    "a large red circle on white",
    "a small blue square on grey",
    "a large yellow triangle on black",
    "a large purple cross on white",
    "a small orange circle on black",
    "a large green square on grey",
)
_SIDE, _GAP, _WORDS = 128, 8, 220
_COLUMNS = 3  # images per prompt and method


def draw_demo(
    outdir: Path,
    seed: int = 0,
    model: str = MINI,
    revision: str | None = None,
    device: str | None = "cpu",
    overwrite: bool = False,
) -> list[Path]:
    """Draws with a model and writes `contact_sheet.png` and one `map_*.png` per DoLa image.

    Args:
        model, revision, device: as for `JanusDoLa.from_pretrained`.
        overwrite: files of those names are replaced.
    Returns:
        the files written, the contact sheet first.
    Raises:
        ValueError: a file is there and may not be replaced, the model is not a Janus, or the device is not there.
    """
    sheet = outdir / "contact_sheet.png"
    maps = [[outdir / f"map_{i}_p{k}.png" for k in range(_COLUMNS)] for i in range(len(PROMPTS))]
    refuse_existing([sheet, *(path for row in maps for path in row)], overwrite)
    check_before_loading(model, device, revision=revision, prompts=PROMPTS)
    make_folder(outdir)
    pipe = JanusDoLa.from_pretrained(model, device, revision=revision)
    shown = sys.stderr.isatty()
    baseline = pipe.generate(PROMPTS, _COLUMNS, dola=None, seed=seed, progress=shown)
    dola = pipe.generate(PROMPTS, _COLUMNS, seed=seed, progress=shown)
    pictures = {sheet: contact_sheet(baseline.images, dola.images)}
    for i, row in enumerate(maps):
        for k, path in enumerate(row):
            pictures[path] = dola.layer_map(i, k)
    for path, picture in pictures.items():
        write_new(path, encode_image(picture, "png", None), overwrite)
    return list(pictures)


def contact_sheet(baseline: list[list[Image.Image]], dola: list[list[Image.Image]]) -> Image.Image:
    """A row per prompt: its words, the baseline's images, DoLa's images from the same seeds."""
    block = _COLUMNS * (_SIDE + _GAP)
    head = 30
    sheet = Image.new(
        "RGB", (_WORDS + 2 * block + 4 * _GAP, head + len(PROMPTS) * (_SIDE + _GAP) + _GAP), (246, 246, 246)
    )
    canvas = ImageDraw.Draw(sheet)
    # Small images are enlarged to squares, large ones made smaller without jagged edges.
    way = Image.Resampling.NEAREST if baseline[0][0].width <= _SIDE else Image.Resampling.LANCZOS
    starts = (_WORDS, _WORDS + block + 3 * _GAP)
    for start, title in zip(starts, ("baseline", "DoLa (alpha 0.1), same seeds"), strict=True):
        canvas.text((start, 7), title, fill=(30, 30, 30), font=font(15))
    for i, prompt in enumerate(PROMPTS):
        top = head + i * (_SIDE + _GAP)
        canvas.text((_GAP, top + _SIDE // 2 - 8), prompt, fill=(30, 30, 30), font=font(14))
        for start, rows in zip(starts, (baseline, dola), strict=True):
            for k, image in enumerate(rows[i]):
                sheet.paste(image.resize((_SIDE, _SIDE), way), (start + k * (_SIDE + _GAP), top))
    return sheet
