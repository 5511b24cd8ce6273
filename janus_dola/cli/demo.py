"""`janus-dola demo`: baseline and DoLa side by side."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli.options import DRAWN, Device, Model, OutDir, Overwrite, Revision


def demo(
    outdir: OutDir = Path("demo_out"),
    seed: Annotated[int, typer.Option(rich_help_panel=DRAWN, help="Seed of the first image.")] = 0,
    model: Model = MINI,
    revision: Revision = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw baseline and DoLa side by side, and maps of what DoLa did."""
    from janus_dola.cli.demo_sheet import draw_demo

    sheet, *maps = draw_demo(outdir, seed, model, revision, device, overwrite)
    typer.echo(f"contact sheet: {sheet}")
    typer.echo(f"layer maps:    {maps[0]} and {len(maps) - 1} more")
