"""`janus-dola batch`: prompts by the thousand, drawn into a folder."""

from pathlib import Path
from typing import Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli.options import (
    DRAWN,
    FILES,
    MACHINE,
    Backend,
    CodesAPass,
    Device,
    Dtype,
    Format,
    Launch,
    Metadata,
    Model,
    OutDir,
    ParallelSize,
    Quantize,
    Revision,
    Size,
    parse_seed,
    parse_window,
    takes_settings,
)
from janus_dola.cli.terminal import complain
from janus_dola.settings import SETTINGS, DrawSettings

PROMPTS = "Prompts"


@takes_settings
def batch(
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts",
            "--prompt-json",
            metavar="FILE",
            rich_help_panel=PROMPTS,
            help='.json: a list, or {"prompts": [...]}; .jsonl: an object a line, {"prompt": "..."} and if wished id, seed, '
            f"parallel_size, {', '.join(SETTINGS)}; .csv, .tsv: the same in columns; "
            ".txt: a prompt a line; a folder: a .txt file for each; - is stdin.",
        ),
    ],
    prompt_key: Annotated[
        str | None,
        typer.Option(rich_help_panel=PROMPTS, help="Key or column that holds the prompt.", show_default="prompt"),
    ] = None,
    outdir: OutDir = Path("out_dola"),
    parallel_size: ParallelSize = 4,
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    max_prompts: Annotated[
        int | None, typer.Option(rich_help_panel=PROMPTS, min=1, help="Draw only so many.", show_default="all")
    ] = None,
    seed: Annotated[
        str,
        typer.Option(
            rich_help_panel=DRAWN,
            help="The n-th image of all, from 0, has the seed SEED + n; random or -1 takes that of the run in OUTDIR, "
            "or else picks one.",
        ),
    ] = "0",
    backend: Backend = "auto",
    launch: Launch = "auto",
    window: CodesAPass = "auto",
    model: Model = MINI,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    size: Size = None,
    image_format: Format = "jpg",
    metadata: Metadata = True,
    name_template: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=FILES,
            help="Names of the files, of {words}, {id}, {index}, {k}, {number} and {seed}: {id}_p{k}.",
            show_default="{index}_{words}_p{k}",
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", rich_help_panel=PROMPTS, help="Record malformed prompts as failed and go on."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", rich_help_panel=FILES, help="Replace what OUTDIR holds of other settings or prompts."
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(rich_help_panel=MACHINE, help="Images drawn at once.", show_default="what fits into memory"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=MACHINE,
            help="Ray actors, each with a GPU or a CPU core.",
            show_default="this process alone",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MACHINE,
            help="Of a Ray cluster: auto, or HOST:PORT; one actor for each GPU.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Draw prompts by the thousand into a folder.

    The same command again goes on where it stopped. OUTDIR gets the images, manifest.jsonl with a line for each, and
    index.html to look at them. The model fixes the size of images.
    """
    from janus_dola.batch import Compute, RunSettings, run_batch
    from janus_dola.batch.files import MANIFEST
    from janus_dola.batch.page import PAGE

    base = parse_seed(seed, outdir)
    run = RunSettings(
        model, settings, parallel_size, base, image_format, dtype, quantize, parse_window(window), metadata, name_template,
        revision,
    )  # fmt: skip
    compute = Compute(device, backend, launch, workers, ray_address, batch_size)
    summary = run_batch(
        prompts,
        outdir,
        run,
        compute,
        prompt_key=prompt_key,
        max_prompts=max_prompts,
        skip_bad=skip_bad,
        overwrite=overwrite,
        progress=True,
    )
    there = summary.drawn + summary.kept
    earlier = f" ({summary.kept} from earlier runs)" if summary.kept else ""
    typer.echo(f"{there} images of {summary.prompts} prompts in {outdir}{earlier}; see {outdir / PAGE}")
    if summary.failed:
        complain(f"{summary.failed} failed: see the lines with an error in {outdir / MANIFEST}")
    if summary.interrupted:
        complain(f"interrupted with {summary.left} images to go; the same command goes on")
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)
