"""`janus-dola profile`: records one model pass with the profiler."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.arguments import MAX_PARALLEL_SIZE, MINI
from janus_dola.cli import options
from janus_dola.images.files import make_folder, refuse_existing
from janus_dola.settings import DrawSettings

_PROMPT = "a large red circle on white"


@options.takes_settings
def profile(
    model: options.Model = MINI,
    revision: options.Revision = None,
    parallel_size: Annotated[int, options.drawn_option(min=1, max=MAX_PARALLEL_SIZE, help="Images drawn at once.")] = 4,
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    backend: options.Backend = "auto",
    launch: options.Launch = "auto",
    device: options.Device = None,
    dtype: options.Dtype = None,
    trace: Annotated[Path, options.file_option(help="File for the timeline; ui.perfetto.dev opens it.")] = Path(
        "pass.json"
    ),
) -> None:
    """Record one model pass: its ten most expensive operations, and a timeline."""
    from janus_dola.engine.profiling import profile_pass
    from janus_dola.pipeline import JanusDoLa

    JanusDoLa.check(model, device, dtype, revision, settings=settings, backend=backend, launch=launch)
    refuse_existing([trace], overwrite=True)  # a link or a folder
    make_folder(trace.parent, "folder of trace")
    pipe = JanusDoLa.from_pretrained(model, device, dtype, revision)
    (rows,) = pipe.encode(_PROMPT)
    typer.echo(profile_pass(pipe.engine, rows, parallel_size, pipe.fitted(settings), backend, launch, trace))
    typer.echo(f"timeline: {trace}")
