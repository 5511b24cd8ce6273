"""`janus-dola clip`: scores images against the prompts in their files."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.cli.options import Device


def clip(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with images that janus-dola drew; subfolders count, too.")
    ],
    model: Annotated[
        str, typer.Option(metavar="ARCHITECTURE:WEIGHTS", help="A model that open_clip knows; WEIGHTS may be a file.")
    ] = "ViT-L-14:openai",
    device: Device = None,
) -> None:
    """Score how well images match their prompts: 100 x the cosine of their CLIP embeddings.

    Prints one line per image, then the mean. The prompt is the one in the image's file.
    """
    from janus_dola.evaluate.clip import clip_scorer, scores_of
    from janus_dola.models.storage import default_device

    total, images, prompts = 0.0, 0, set[str]()
    for path, prompt, score in scores_of(folder, clip_scorer(model, device or default_device())):
        typer.echo(f"{score:.2f}\t{path}")
        total, images = total + score, images + 1
        prompts.add(prompt)
    typer.echo(f"{total / images:.2f}\tmean of {images} images of {len(prompts)} prompts")
