"""`janus-dola demo`: baseline beside DoLa for the same prompts and seeds, and a map of what DoLa did in each image."""

from pathlib import Path

from PIL import Image, ImageDraw

from janus_dola.layer_map import font
from janus_dola.pipeline import JanusDoLa

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


def draw_demo(outdir: Path, seed: int = 0) -> list[Path]:
    """Draws with the mini model on the CPU and writes `contact_sheet.png` and one `map_*.png` per DoLa image.

    Returns:
        the files written, the contact sheet first.
    """
    outdir.mkdir(parents=True, exist_ok=True)
    pipe = JanusDoLa.from_pretrained("mini", device="cpu")
    baseline = pipe.generate(PROMPTS, _COLUMNS, dola=None, seed=seed, progress=True)
    dola = pipe.generate(PROMPTS, _COLUMNS, seed=seed, progress=True)
    written = [outdir / "contact_sheet.png"]
    contact_sheet(baseline.images, dola.images).save(written[0])
    for i, row in enumerate(dola.drawn):
        for k, image in enumerate(row):
            written.append(outdir / f"map_{i}_p{k}.png")
            image.layer_map().save(written[-1])
    return written


def contact_sheet(baseline: list[list[Image.Image]], dola: list[list[Image.Image]]) -> Image.Image:
    """A row per prompt: its words, the baseline's images, DoLa's images from the same seeds."""
    block = _COLUMNS * (_SIDE + _GAP)
    head = 30
    sheet = Image.new(
        "RGB", (_WORDS + 2 * block + 4 * _GAP, head + len(PROMPTS) * (_SIDE + _GAP) + _GAP), (246, 246, 246)
    )
    canvas = ImageDraw.Draw(sheet)
    starts = (_WORDS, _WORDS + block + 3 * _GAP)
    for start, title in zip(starts, ("baseline", "DoLa (alpha 0.1), same seeds"), strict=True):
        canvas.text((start, 7), title, fill=(30, 30, 30), font=font(15))
    for i, prompt in enumerate(PROMPTS):
        top = head + i * (_SIDE + _GAP)
        canvas.text((_GAP, top + _SIDE // 2 - 8), prompt, fill=(30, 30, 30), font=font(14))
        for start, rows in zip(starts, (baseline, dola), strict=True):
            for k, image in enumerate(rows[i]):
                sheet.paste(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (start + k * (_SIDE + _GAP), top))
    return sheet
