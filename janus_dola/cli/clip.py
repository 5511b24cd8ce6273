"""`janus-dola clip`: the CLIP score of images that carry their prompts."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.cli.options import Device


def clip(
    folder: Annotated[Path, typer.Argument(help="Folder of images drawn by janus-dola, and its subfolders.")],
    model: Annotated[
        str, typer.Option(metavar="ARCHITECTURE:WEIGHTS", help="A model of open_clip; weights may be a file.")
    ] = "ViT-L-14:openai",
    device: Device = None,
) -> None:
    """Score how near images and their prompts lie: 100 x the cosine of their CLIP embeddings.

    A line for each image, then the mean. The prompt is the one in the image's recipe.
    """
    from janus_dola.evaluate.clip import clip_scorer, scores_of
    from janus_dola.models.placement import default_device

    total, images, prompts = 0.0, 0, set[str]()
    for path, prompt, score in scores_of(folder, clip_scorer(model, device or default_device())):
        typer.echo(f"{score:.2f}\t{path}")
        total, images = total + score, images + 1
        prompts.add(prompt)
    typer.echo(f"{total / images:.2f}\tmean of {images} images of {len(prompts)} prompts")
