"""`janus-dola profile`: one pass of a model under the profiler."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.commands.options import (
    Backend,
    Device,
    Dtype,
    EngineName,
    Model,
    takes_settings,
)
from janus_dola.models.load import MINI
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings


@takes_settings
def profile(
    model: Model = MINI,
    parallel_size: Annotated[int, typer.Option(help="Images drawn at once.")] = 4,
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    backend: Backend = "auto",
    engine: EngineName = "auto",
    device: Device = None,
    dtype: Dtype = None,
    trace: Annotated[Path, typer.Option(help="File for the timeline, to be opened at ui.perfetto.dev.")] = Path(
        "pass.json"
    ),
) -> None:
    """Record one pass of the model: its ten most expensive operations, and a timeline."""
    from janus_dola.profiling import profile_pass

    pipe = JanusDoLa.from_pretrained(model, device, dtype)
    typer.echo(profile_pass(pipe, parallel_size, settings, backend, engine, trace))
    typer.echo(f"timeline: {trace}")
