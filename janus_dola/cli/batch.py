"""`janus-dola batch`: draws thousands of prompts into a folder."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli import options
from janus_dola.cli.terminal import complain
from janus_dola.settings import SETTINGS, DrawSettings

_prompt_option = partial(typer.Option, rich_help_panel="Prompts")


@options.takes_settings
def batch(
    prompts: Annotated[
        str,
        _prompt_option(
            "--prompts",
            "--prompt-json",
            metavar="FILE",
            help='.json: a list, or {"prompts": [...]}. .jsonl: one object per line with prompt and, optionally, id, '
            f"seed, parallel_size, {', '.join(SETTINGS)}. .csv, .tsv: the same as columns. "
            ".txt: one prompt per line. A folder: one .txt file per prompt. - reads stdin.",
        ),
    ],
    prompt_key: Annotated[
        str | None, _prompt_option(help="Key or column that holds the prompt.", show_default="prompt")
    ] = None,
    outdir: options.OutDir = Path("out_dola"),
    parallel_size: options.ParallelSize = 4,
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    max_prompts: Annotated[
        int | None, _prompt_option(min=1, help="Draw only the first N prompts.", metavar="N", show_default="all")
    ] = None,
    seed: Annotated[
        str,
        options.drawn_option(
            metavar="N|random",
            help="Image n of the run, from 0, gets the seed SEED + n; random (or -1) takes the seed of the run in OUTDIR, "
            "or picks one.",
        ),
    ] = "0",
    backend: options.Backend = "auto",
    launch: options.Launch = "auto",
    window: options.CodesPerPass = "auto",
    model: options.Model = MINI,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    size: options.Size = None,
    image_format: options.BatchFormat = None,
    metadata: options.Metadata = True,
    name_template: Annotated[
        str | None,
        options.file_option(
            help="File names, made from {words}, {id}, {index}, {k}, {number} and {seed}: for example {id}_p{k}.",
            show_default="{index}_{words}_p{k}",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, _prompt_option("--skip-bad", help="Record malformed prompts as failed, and draw the others.")
    ] = False,
    overwrite: Annotated[
        bool, options.file_option("--overwrite", help="Replace what OUTDIR holds from other settings or prompts.")
    ] = False,
    batch_size: Annotated[
        int | None, options.machine_option(help="Images drawn at once.", show_default="what fits into memory")
    ] = None,
    workers: Annotated[
        int | None,
        options.machine_option(help="Ray actors, each with a GPU or a CPU core.", show_default="this process alone"),
    ] = None,
    ray_address: Annotated[
        str | None,
        options.machine_option(help="A Ray cluster: auto or HOST:PORT; starts one actor per GPU.", show_default="none"),
    ] = None,
) -> None:
    """Draw thousands of prompts into a folder.

    Run the same command again to continue where it stopped. The model fixes the size of its images.

    OUTDIR gets the images, manifest.jsonl with one line per image, and index.html, a page that shows them.
    """
    from janus_dola.batch import Compute, RunSettings, run_batch
    from janus_dola.batch.index_page import PAGE
    from janus_dola.batch.manifest import MANIFEST

    base, codes = options.parse_seed(seed, outdir), options.parse_window(window)
    chosen = options.format_for(image_format, "jpg", model, revision)
    run = RunSettings(
        model, settings, parallel_size, base, chosen, dtype, quantize, codes, metadata, name_template, revision
    )
    compute = Compute(device, backend, launch, workers, ray_address, batch_size)
    summary = run_batch(
        prompts, outdir, run, compute, prompt_key=prompt_key, max_prompts=max_prompts, skip_bad=skip_bad,
        overwrite=overwrite, progress=True
    )  # fmt: skip
    earlier = f" ({summary.kept} from earlier runs)" if summary.kept else ""
    there = summary.drawn + summary.kept
    typer.echo(f"{there} images of {summary.prompts} prompts in {outdir}{earlier}; see {outdir / PAGE}")
    if summary.failed:
        complain(f"{summary.failed} failed: see the lines with an error in {outdir / MANIFEST}")
    if summary.interrupted:
        complain(f"interrupted with {summary.left} images to go; the same command goes on")
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)
