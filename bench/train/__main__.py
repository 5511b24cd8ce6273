"""Trains the checkpoint that ships as "mini", from nothing but Pillow and torch, and puts it into the package.

    python -m bench.train                 # everything
    python -m bench.train --only backbone # the language model again, on the image tokenizer already in --work

The weights in the repository took an hour for the image tokenizer and 77 minutes for the language model, on 2 CPU cores that
also ran other work, in seven stages that bench/train/README.md tells. This command has not been run from end to end.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bench import ROOT
from bench.train.backbone import train_backbone
from bench.train.image_tokenizer import train_vq

CHECKPOINT = ROOT / "janus_dola" / "mini" / "checkpoint"


def main(
    only: Annotated[Literal["vq", "backbone"] | None, typer.Option(help="One of the two stages.")] = None,
    work: Annotated[Path, typer.Option(help="Where the image tokenizer is kept between the stages.")] = Path(
        "build/mini"
    ),
    target: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = CHECKPOINT,
    crop_steps: Annotated[int, typer.Option(help="Steps on crops, without a codebook.")] = 4000,
    code_steps: Annotated[int, typer.Option(help="Steps on crops, with a codebook.")] = 3000,
    picture_steps: Annotated[int, typer.Option(help="Steps on whole pictures.")] = 4000,
    backbone_steps: Annotated[int, typer.Option(help="Steps of the language model.")] = 6000,
) -> None:
    """Train the mini model."""
    if only != "backbone":
        train_vq(work, (crop_steps, code_steps, picture_steps))
    if only != "vq":
        train_backbone(work, target, backbone_steps)


if __name__ == "__main__":
    typer.run(main)
