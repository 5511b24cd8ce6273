"""`janus-dola geneval`: lays out a batch run's images for GenEval's scorer."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.cli.terminal import complain


def geneval(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="OUTDIR of `janus-dola batch`.")],
    outdir: Annotated[Path, typer.Option(help="New folder for GenEval's scorer.")] = Path("geneval_out"),
) -> None:
    """Lay out a batch run of GenEval's prompts in the folders that GenEval's scorer reads.

    Draw them first: janus-dola batch --prompts evaluation_metadata.jsonl --format png --outdir FOLDER
    """
    from janus_dola.evaluate.geneval import lay_out

    layout = lay_out(folder, outdir)
    typer.echo(f"{layout.images} images of {layout.prompts} prompts in {outdir}")
    if layout.missing:
        complain(f"{layout.missing} images are missing: see the lines with an error in the manifest of {folder}")
        raise typer.Exit(1)
