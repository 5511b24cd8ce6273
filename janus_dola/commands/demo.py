"""`janus-dola demo`: baseline and DoLa side by side."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.commands.options import (
    OutDir,
)


def demo(
    outdir: OutDir = Path("demo_out"),
    seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
) -> None:
    """Draw baseline and DoLa side by side with the mini model, and maps of what DoLa did."""
    from janus_dola.demo import draw_demo

    sheet, *maps = draw_demo(outdir, seed)
    typer.echo(f"contact sheet: {sheet}")
    typer.echo(f"layer maps:    {maps[0]} and {len(maps) - 1} more")
