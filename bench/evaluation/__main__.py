"""`python -m bench.evaluation`: what DoLa does to pictures, measured."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.evaluation.command import Request, run_evaluation
from janus_dola.arguments import MINI
from janus_dola.cli import app as cli
from janus_dola.cli.options import (
    Device,
    Dtype,
    Model,
    ParallelSize,
    Seed,
)


def evaluate(
    more: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUES", help="More of the grid.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES ...",
            help="Values to combine, such as alpha=0,0.1 layers=auto,final cfg=1,5 temperature=1. "
            "Layers: auto, early (the first ones), late (the last ones), random (drawn once), final (no contrast).",
            show_default="DoLa's defaults",
        ),
    ] = None,
    model: Model = MINI,
    revision: Annotated[str | None, typer.Option(help="Of the repository.", show_default="the newest")] = None,
    images: Annotated[
        int | None, typer.Option(help="Images per cell.", show_default="1000, or all prompts of the file")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="GenEval's evaluation_metadata.jsonl. The images are kept, in the folders its scorer reads."),
    ] = None,
    outdir: Annotated[Path, typer.Option(help="Folder for the results; cells that are there are kept.")] = Path(
        "evaluation_out"
    ),
    parallel_size: ParallelSize = 4,
    seed: Seed = 0,
    match: Annotated[
        bool,
        typer.Option(help="For each cell with the layers auto, also a baseline with a temperature of its entropy."),
    ] = True,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="ARCHITECTURE:WEIGHTS", help="Adds the CLIP score by a model of open_clip: ViT-L-14:openai."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure what DoLa does to pictures: scores, diversity and sharpness on a grid of settings, with intervals.

    Without --prompts the mini model draws its captions and its checker judges them.
    """
    request = Request(
        model=model,
        revision=revision,
        grid=(*(grid or ()), *(more or ())),
        images=images,
        prompts=prompts,
        outdir=outdir,
        parallel_size=parallel_size,
        seed=seed,
        match=match,
        clip=clip,
        device=device,
        dtype=dtype,
    )
    for line in run_evaluation(request, progress=sys.stderr.isatty()):
        typer.echo(line)


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, context_settings=cli.app.info.context_settings)
app.command()(cli.prepared(evaluate))

if __name__ == "__main__":
    cli.run(app)
