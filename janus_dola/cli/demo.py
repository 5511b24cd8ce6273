"""`janus-dola demo`: baseline beside DoLa for the same prompts and seeds, and a map of what DoLa did in each image."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli.options import Device, Model, OutDir, Overwrite, Revision, drawn_option
from janus_dola.images.files import make_folder, refuse_existing, write_all

if TYPE_CHECKING:
    from PIL import Image

PROMPTS = (
    "a large red circle on white",
    "a small blue square on grey",
    "a large yellow triangle on black",
    "a large purple cross on white",
    "a small orange circle on black",
    "a large green square on grey",
)
_SIDE, _GAP, _WORDS, _HEAD = 128, 8, 220, 30  # pixels
_COLUMNS = 3  # images per prompt and method


def demo(
    outdir: OutDir = Path("demo_out"),
    seed: Annotated[int, drawn_option(help="Seed of the first image.")] = 0,
    model: Model = MINI,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw a few prompts without and with DoLa, side by side, and maps of what DoLa did."""
    from janus_dola.images.recipe import encode_image
    from janus_dola.pipeline import JanusDoLa

    sheet = outdir / "contact_sheet.png"
    maps = {outdir / f"map_{i}_p{k}.png": (i, k) for i in range(len(PROMPTS)) for k in range(_COLUMNS)}
    refuse_existing([sheet, *maps], overwrite)
    JanusDoLa.check(model, device, revision=revision, prompts=PROMPTS, pictures_for="demo")
    make_folder(outdir)
    pipe = JanusDoLa.from_pretrained(model, device, revision=revision)
    progress = sys.stderr.isatty()
    baseline = pipe.generate(PROMPTS, _COLUMNS, contrast=None, seed=seed, progress=progress)
    dola = pipe.generate(PROMPTS, _COLUMNS, seed=seed, progress=progress)
    write_all([(sheet, encode_image(_contact_sheet(baseline.images, dola.images), "png", None))], overwrite)
    pictures = ((path, encode_image(dola.layer_map(i, k), "png", None)) for path, (i, k) in maps.items())
    write_all(pictures, overwrite)
    typer.echo(f"contact sheet: {sheet}")
    typer.echo(f"layer maps:    {next(iter(maps))} and {len(maps) - 1} more")


def _contact_sheet(baseline: list[list["Image.Image"]], dola: list[list["Image.Image"]]) -> "Image.Image":
    """Pastes a row per prompt: its words, the baseline's images, DoLa's images from the same seeds."""
    from PIL import Image, ImageDraw

    from janus_dola.images.layer_map import font

    block = _COLUMNS * (_SIDE + _GAP)
    size = _WORDS + 2 * block + 4 * _GAP, _HEAD + len(PROMPTS) * (_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", size, (246, 246, 246))
    canvas = ImageDraw.Draw(sheet)
    # Small images are enlarged to squares, large ones made smaller without jagged edges.
    resampling = Image.Resampling.NEAREST if baseline[0][0].width <= _SIDE else Image.Resampling.LANCZOS
    starts = (_WORDS, _WORDS + block + 3 * _GAP)
    for start, title in zip(starts, ("baseline", "DoLa (alpha 0.1), same seeds"), strict=True):
        canvas.text((start, 7), title, fill=(30, 30, 30), font=font(15))
    for i, prompt in enumerate(PROMPTS):
        top = _HEAD + i * (_SIDE + _GAP)
        canvas.text((_GAP, top + _SIDE // 2 - 8), prompt, fill=(30, 30, 30), font=font(14))
        for start, rows in zip(starts, (baseline, dola), strict=True):
            for k, image in enumerate(rows[i]):
                sheet.paste(image.resize((_SIDE, _SIDE), resampling), (start + k * (_SIDE + _GAP), top))
    return sheet
