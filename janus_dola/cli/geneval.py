"""`janus-dola geneval`: a batch run's images as GenEval's scorer wants them."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.cli.terminal import complain


def geneval(
    folder: Annotated[Path, typer.Argument(help="OUTDIR of `janus-dola batch`.")],
    outdir: Annotated[Path, typer.Option(help="New folder for GenEval's scorer.")] = Path("geneval_out"),
) -> None:
    """Lay out a batch run of GenEval's prompts in the folders that its scorer reads.

    First: janus-dola batch --prompts evaluation_metadata.jsonl --format png --outdir FOLDER
    """
    from janus_dola.evaluate.geneval import lay_out

    found = lay_out(folder, outdir)
    typer.echo(f"{found.images} images of {found.prompts} prompts in {outdir}")
    if found.missing:
        complain(f"{found.missing} images are missing: see the lines with an error in the manifest of {folder}")
        raise typer.Exit(1)
