"""`janus-dola lens`: trains a lens for a model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from janus_dola.cli import options
from janus_dola.contrasts import parse_layers


def lens(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, or a repository on the Hugging Face hub.")],
    prompts: Annotated[Path, typer.Option(help="A file with prompts, in any format that `batch` reads.")],
    outfile: Annotated[
        Path | None, options.file_option(help="The file to write.", show_default="lens.safetensors, beside the weights")
    ] = None,
    layers: Annotated[str, typer.Option(help="Candidate layers, as for `generate`.")] = "auto",
    images: Annotated[
        int | None, typer.Option(min=1, help="Images to draw and train on.", show_default="enough for 64,000 positions")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of each layer's matrix.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 700,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Train a lens: maps of early layers, for `--lens`, from images that the model draws itself.

    Run again after it was stopped, it goes on where it was. Prints by layer how far its reading is from the final layer's.
    """
    from janus_dola.batch.prompts import PromptSource
    from janus_dola.batch.run_settings import RunSettings
    from janus_dola.pipeline import JanusDoLa
    from janus_dola.training.lens_run import train_lens
    from janus_dola.training.lens_training import LensSettings

    records = list(PromptSource(prompts).read(RunSettings(parallel_size=1)))
    if fault := next((record.fault for record in records if record.fault), None):
        raise typer.BadParameter(fault)
    JanusDoLa.check(model, device, dtype, revision, prompts=(record.tasks[0].prompt for record in records))
    pipe = JanusDoLa.from_pretrained(model, device, dtype, revision)
    nats = train_lens(
        pipe, [record.tasks[0].prompt for record in records], outfile, layers=parse_layers(layers), images=images,
        settings=LensSettings(rank=rank, steps=steps, seed=seed), overwrite=overwrite, progress=sys.stderr.isatty(),
    )  # fmt: skip
    for layer, (before, after) in nats.items():
        typer.echo(f"layer {layer}: {before:.2f} nats from the final layer, {after:.2f} with the lens")
