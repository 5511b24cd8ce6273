"""The picture at the top of the README: the first captions of the evaluation, the same seeds under five settings.

What the checker finds wrong has a red frame. Nothing is chosen: captions and seeds are the first ones.
"""

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw

from bench import RESULTS
from bench.evaluation.task import captions
from bench.mini.judge import check
from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.images.layer_map import font
from janus_dola.settings import DrawSettings

FILE = RESULTS / "settings_sheet.png"
SETTINGS = {
    "baseline": DrawSettings(contrast=None),
    "truncation alone (alpha 0.1)": DrawSettings(contrast=DoLaConfig(alpha=0.1, premature_layer="final")),
    "DoLa, alpha 0.1": DrawSettings(),
    "DoLa, alpha 0.5": DrawSettings(contrast=DoLaConfig(alpha=0.5)),
    "baseline, temperature 0.3": DrawSettings(temperature=0.3, contrast=None),
}
_SIDE, _GAP, _BETWEEN, _TOP = 64, 4, 18, 30
_INK, _PAPER, _WRONG = (30, 30, 30), (250, 250, 250), (205, 20, 40)


def sheet(rows: dict[str, list[list[Image.Image]]], prompts: list[str], images: int) -> Image.Image:
    """Draws a row per caption, and below it the images of each setting side by side.

    Args:
        rows: for each setting the images of each prompt.
        images: of a prompt under a setting.
    """
    block = images * (_SIDE + _GAP) - _GAP
    line = _SIDE + 26
    size = len(rows) * (block + _BETWEEN) + _BETWEEN, _TOP + len(prompts) * line + _GAP
    picture = Image.new("RGB", size, _PAPER)
    canvas = ImageDraw.Draw(picture)
    for i, prompt in enumerate(prompts):
        canvas.text((_BETWEEN, _TOP + i * line), prompt, fill=_INK, font=font(13))
    for column, (name, of_prompts) in enumerate(rows.items()):
        left = _BETWEEN + column * (block + _BETWEEN)
        canvas.text((left, 8), name, fill=_INK, font=font(15))
        for i, (prompt, drawn) in enumerate(zip(prompts, of_prompts, strict=True)):
            for k, image in enumerate(drawn):
                x, y = left + k * (_SIDE + _GAP), _TOP + i * line + 19
                if not check(image, prompt).all_right:
                    canvas.rectangle((x - 3, y - 3, x + _SIDE + 2, y + _SIDE + 2), fill=_WRONG)
                picture.paste(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, y))
    return picture


def main(
    prompts: Annotated[int, typer.Option(help="Captions.")] = 5,
    images: Annotated[int, typer.Option(help="Of each caption, under each setting.")] = 3,
    file: Annotated[Path, typer.Option(help="To write.")] = FILE,
) -> None:
    """Draw the sheet with the mini model on the CPU."""
    pipe, texts = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32"), captions(prompts)
    sheet({name: pipe(texts, images, settings).images for name, settings in SETTINGS.items()}, texts, images).save(file)


if __name__ == "__main__":
    typer.run(main)
