"""The command line: `janus-dola generate`, `batch`, `evaluate`, `info`, `profile` and `demo`."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import transformers
import typer

from janus_dola.batch import Compute, Look, Settings, run_batch
from janus_dola.batch.manifest import NAME as MANIFEST
from janus_dola.batch.page import PAGE
from janus_dola.batch.pool import WorkersLostError
from janus_dola.checks import Window, check_window
from janus_dola.config import DoLaConfig
from janus_dola.image_files import ImageFormat, Recipe, file_name, read_recipe, save_image
from janus_dola.kernels.packed import can_pack
from janus_dola.models import find_parts
from janus_dola.models.load import HINT_AT_MINI, MINI, load_skeleton
from janus_dola.models.quantize import Quantization
from janus_dola.pipeline import JanusDoLa, NonFiniteError
from janus_dola.terminal import complain, prepare_streams
from janus_dola.threads import processors, use_processors

Model = Annotated[str, typer.Option(help='"mini", a folder, or a repository such as deepseek-community/Janus-Pro-1B.')]
OutDir = Annotated[Path, typer.Option(help="Folder for the images.")]
ParallelSize = Annotated[int, typer.Option(help="Images per prompt.")]
CfgWeight = Annotated[float, typer.Option(help="Weight of classifier-free guidance.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
Alpha = Annotated[float, typer.Option(help="Plausibility threshold of DoLa, in [0, 1].")]
CandidateLayers = Annotated[str, typer.Option(help='"auto", or layers to choose from: 22,24,26,28.')]
PrematureLayer = Annotated[
    str | None,
    typer.Option(help='Always contrast with this layer; "final" contrasts with none.', show_default="by JSD"),
]
Dola = Annotated[bool, typer.Option("--dola/--no-dola", help="DoLa, or plain decoding.")]
Seed = Annotated[int, typer.Option(help="Image k of prompt i has the seed SEED + i * PARALLEL_SIZE + k.")]
Backend = Annotated[str, typer.Option(help="Of the early-exit stage: auto, reference, torch or triton.")]
EngineName = Annotated[str, typer.Option("--engine", help="How a pass is run: auto, graph, compile or eager.")]
WindowName = Annotated[
    str, typer.Option("--window", help="Codes a pass: auto, 1, 2, 4, 8, 16 or 32. The images are the same for any.")
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(help="Weights of the blocks in 8 bits; other tokens now and then.", show_default="as they are"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="a GPU if there is one")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16.", show_default="float32 on a CPU, else bfloat16"),
]
Format = Annotated[ImageFormat, typer.Option("--format", help="File format of the images.")]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # --parallel_size is the same as --parallel-size.
    context_settings={
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
    help="Draw images with DeepSeek Janus and DoLa decoding.",
)


def parse_layers(text: str) -> list[int] | Literal["auto"]:
    """ "auto", or a comma-separated list of layers.

    Raises:
        ValueError: it is neither.
    """
    if text.strip() == "auto":
        return "auto"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'candidate_layers must be "auto" or integers separated by commas, got {text!r}') from None


def parse_window(text: str) -> Window:
    """ "auto", or a number of codes.

    Raises:
        ValueError: it is neither.
    """
    return check_window(cast(Window, int(text) if text.isdecimal() else text))


def parse_premature(text: str | None) -> int | Literal["final"] | None:
    """ "final", a layer, or None.

    Raises:
        ValueError: it is none of those.
    """
    if text is None:
        return None
    if text == "final":
        return "final"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'premature_layer must be an integer or "final", got {text!r}') from None


def _dola(enabled: bool, candidate_layers: str, alpha: float, premature_layer: str | None) -> DoLaConfig | None:
    config = DoLaConfig(parse_layers(candidate_layers), alpha, parse_premature(premature_layer))
    return config if enabled else None


def _hint_at_mini(model: str) -> None:
    if model == MINI:
        typer.echo(HINT_AT_MINI, err=True)


@app.command()
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    model: Model = MINI,
    outdir: OutDir = Path("generated_samples"),
    parallel_size: ParallelSize = 1,
    cfg_weight: CfgWeight = 5.0,
    temperature: Temperature = 1.0,
    alpha: Alpha = 0.1,
    candidate_layers: CandidateLayers = "auto",
    premature_layer: PrematureLayer = None,
    dola: Dola = True,
    seed: Seed = 0,
    backend: Backend = "auto",
    engine: EngineName = "auto",
    window: WindowName = "auto",
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    image_format: Format = "png",
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Write prompt, model and settings into each image.")
    ] = True,
    from_image: Annotated[
        Path | None, typer.Option("--from", help="Draw the image in this file again, by the recipe in its metadata.")
    ] = None,
) -> None:
    """Draw one or several prompts and print the files written."""
    if from_image is not None:
        _refuse_other_settings(context)
        recipe = read_recipe(from_image)
        prompts, dtype = [recipe.prompt], recipe.dtype
        look = Look(recipe.cfg_weight, recipe.temperature, recipe.dola)
        settings = Settings(
            recipe.model, look, 1, recipe.seed, image_format, quantize=recipe.quantize, window=recipe.window
        )
    else:
        if not prompts:
            raise typer.BadParameter("give a prompt, or --from an image")
        look = Look(cfg_weight, temperature, _dola(dola, candidate_layers, alpha, premature_layer))
        settings = Settings(
            model, look, parallel_size, seed, image_format, quantize=quantize, window=parse_window(window)
        )
    _hint_at_mini(settings.model)
    pipe = JanusDoLa.from_pretrained(settings.model, device, dtype, quantize=settings.quantize)
    for path in _draw_to_files(pipe, prompts, outdir, settings, backend, engine, metadata):
        typer.echo(path)


def _draw_to_files(
    pipe: JanusDoLa,
    prompts: list[str],
    outdir: Path,
    settings: Settings,
    backend: str,
    engine: str,
    metadata: bool,
) -> Iterator[Path]:
    look = settings.look
    drawn = pipe.stream(
        prompts,
        settings.parallel_size,
        dola=look.dola,
        cfg_weight=look.cfg_weight,
        temperature=look.temperature,
        seed=settings.seed,
        backend=backend,
        engine=engine,
        window=settings.window,
        progress=sys.stderr.isatty(),
    )
    outdir.mkdir(parents=True, exist_ok=True)
    dtype = str(pipe.parts.stored_dtype).removeprefix("torch.")
    for found in drawn:
        prompt = prompts[found.prompt]
        recipe = Recipe(
            settings.model, prompt, found.seed, look.cfg_weight, look.temperature, look.dola, dtype, settings.quantize,
            settings.window,
        )  # fmt: skip
        path = outdir / file_name(found.prompt, prompt, found.k, settings.image_format)
        save_image(found.image, path, recipe if metadata else None)
        yield path


def _refuse_other_settings(context: typer.Context) -> None:
    """With --from, everything that decides what is drawn comes from the image."""
    allowed = {"from_image", "outdir", "backend", "engine", "device", "image_format", "metadata"}
    given = [
        name
        for name in context.params
        if name not in allowed and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"--from takes everything from the image; leave out: {', '.join(given)}")


@app.command()
def batch(
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts",
            "--prompt-json",
            metavar="FILE",
            help='.json: a list, or {"prompts": [...]}; .jsonl: an object a line, {"prompt": "..."} and if wished id, seed, '
            "parallel_size, cfg_weight, alpha, candidate_layers; .csv, .tsv: the same in columns; .txt: a prompt a line; "
            "a folder: a .txt file for each; - is stdin.",
        ),
    ],
    prompt_key: Annotated[
        str | None, typer.Option(help="Key or column that holds the prompt.", show_default="prompt")
    ] = None,
    model: Model = MINI,
    outdir: OutDir = Path("out_dola"),
    parallel_size: ParallelSize = 4,
    cfg_weight: CfgWeight = 5.0,
    temperature: Temperature = 1.0,
    alpha: Alpha = 0.1,
    candidate_layers: CandidateLayers = "auto",
    premature_layer: PrematureLayer = None,
    dola: Dola = True,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Draw only so many.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="The n-th image of all, from 0, has the seed SEED + n.")] = 0,
    backend: Backend = "auto",
    engine: EngineName = "auto",
    window: WindowName = "auto",
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    image_format: Format = "jpg",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Record malformed prompts as failed and go on.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what OUTDIR holds of other settings or prompts.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Images drawn at once.", show_default="what fits into memory")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Ray actors, each with a GPU or a CPU core.", show_default="this process alone"),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster: auto, or HOST:PORT; one actor for each GPU.", show_default="none"),
    ] = None,
) -> None:
    """Draw prompts by the thousand into a folder.

    The same command again goes on where it stopped. OUTDIR gets the images, manifest.jsonl with a line for each, and
    index.html to look at them.
    """
    look = Look(cfg_weight, temperature, _dola(dola, candidate_layers, alpha, premature_layer))
    settings = Settings(model, look, parallel_size, seed, image_format, dtype, quantize, parse_window(window))
    compute = Compute(device, backend, engine, workers, ray_address, batch_size)
    summary = run_batch(
        prompts,
        outdir,
        settings,
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


@app.command()
def evaluate(
    more: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUES", help="More of the grid.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES ...",
            help="Values to combine, such as alpha=0,0.1 layers=auto,final cfg=1,5 temperature=1. "
            "Layers: auto, early (the first ones), late (the last ones), random (drawn once), final (no contrast).",
            show_default="DoLa's defaults",
        ),
    ] = None,
    model: Model = MINI,
    revision: Annotated[str | None, typer.Option(help="Of the repository.", show_default="the newest")] = None,
    images: Annotated[
        int | None, typer.Option(help="Images per cell.", show_default="1000, or all prompts of the file")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="GenEval's evaluation_metadata.jsonl. The images are kept, in the folders its scorer reads."),
    ] = None,
    outdir: Annotated[Path, typer.Option(help="Folder for the results; cells that are there are kept.")] = Path(
        "evaluation_out"
    ),
    parallel_size: ParallelSize = 4,
    seed: Seed = 0,
    match: Annotated[
        bool,
        typer.Option(help="For each cell with the layers auto, also a baseline with a temperature of its entropy."),
    ] = True,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="ARCHITECTURE:WEIGHTS", help="Adds the CLIP score by a model of open_clip: ViT-L-14:openai."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Measure what DoLa does to pictures: scores, diversity and sharpness on a grid of settings, with intervals.

    Without --prompts the mini model draws its captions and its checker judges them.
    """
    from janus_dola.evaluation.command import Request, run_evaluation

    request = Request(
        model=model,
        revision=revision,
        grid=(*(grid or ()), *(more or ())),
        images=images,
        prompts=prompts,
        outdir=outdir,
        parallel_size=parallel_size,
        seed=seed,
        match=match,
        clip=clip,
        device=device,
        dtype=dtype,
    )
    for line in run_evaluation(request, progress=sys.stderr.isatty()):
        typer.echo(line)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help='"mini", a folder or a repository.')] = MINI,
) -> None:
    """Show a model's layers, shapes and default candidate layers."""
    parts = find_parts(load_skeleton(model))
    lines = {
        "model": model,
        "family": parts.family,
        "blocks (N)": parts.num_layers,
        "hidden size (D)": parts.head.hidden_size,
        "head width (E)": parts.head.code_weight.shape[1],
        "image codes (V)": parts.head.num_codes,
        "codes per image": parts.image_tokens,
        "image size": f"{parts.image_size} x {parts.image_size} pixels",
        "default candidate layers": ", ".join(map(str, DoLaConfig().layers_to_read(parts.num_layers))),
        "threads on a CPU": f"{torch.get_num_threads()}, of {processors()} processors; OMP_NUM_THREADS changes it",
        "float16 on a CPU": "packed, computed with in float32" if can_pack() else "torch's own products, slow",
    }
    for name, value in lines.items():
        typer.echo(f"{name:26}{value}")


@app.command()
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

    config = _dola(dola, candidate_layers, alpha, premature_layer)
    pipe = JanusDoLa.from_pretrained(model, device, dtype)
    typer.echo(profile_pass(pipe, parallel_size, config, backend, engine, trace))
    typer.echo(f"timeline: {trace}")


@app.command()
def demo(
    outdir: OutDir = Path("demo_out"),
    seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
) -> None:
    """Draw baseline and DoLa side by side with the mini model, and maps of what DoLa did."""
    from janus_dola.demo import draw_demo

    sheet, *maps = draw_demo(outdir, seed)
    typer.echo(f"contact sheet: {sheet}")
    typer.echo(f"layer maps:    {maps[0]} and {len(maps) - 1} more")


def batch_alone() -> typer.Typer:
    """The batch command as a command line of its own."""
    alone = typer.Typer(
        pretty_exceptions_enable=False, add_completion=False, context_settings=app.info.context_settings
    )
    alone.command()(batch)
    return alone


def run(command: typer.Typer) -> None:
    """Runs a command line; wrong input ends in one line on stderr and exit status 2."""
    prepare_streams()
    use_processors()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what is wrong with a model is said by the one line
    warnings.filterwarnings("ignore", module=r"PIL\.")  # images that it warns of carry no recipe
    try:
        command()
    except (ValueError, OSError, ImportError) as error:
        complain(f"error: {error}")
        sys.exit(2)
    except (NonFiniteError, WorkersLostError) as error:
        complain(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run(app)
