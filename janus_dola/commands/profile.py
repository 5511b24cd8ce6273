"""`janus-dola profile`: one pass of a model under the profiler."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.commands.options import (
    Alpha,
    Backend,
    CandidateLayers,
    Device,
    Dola,
    Dtype,
    EngineName,
    Model,
    PrematureLayer,
    dola_of,
)
from janus_dola.models.load import MINI
from janus_dola.pipeline import JanusDoLa


def profile(
    model: Model = MINI,
    parallel_size: Annotated[int, typer.Option(help="Images drawn at once.")] = 4,
    alpha: Alpha = 0.1,
    candidate_layers: CandidateLayers = "auto",
    premature_layer: PrematureLayer = None,
    dola: Dola = True,
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

    config = dola_of(dola, candidate_layers, alpha, premature_layer)
    pipe = JanusDoLa.from_pretrained(model, device, dtype)
    typer.echo(profile_pass(pipe, parallel_size, config, backend, engine, trace))
    typer.echo(f"timeline: {trace}")
