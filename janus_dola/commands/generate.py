"""`janus-dola generate`: one or several prompts, drawn to files."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from janus_dola.batch import Settings
from janus_dola.batch.settings import Task
from janus_dola.commands.options import (
    Backend,
    Device,
    Dtype,
    EngineName,
    Format,
    Metadata,
    Model,
    OutDir,
    ParallelSize,
    Quantize,
    RandomSeed,
    Size,
    WindowName,
    hint_at_mini,
    parse_seed,
    parse_window,
    takes_settings,
)
from janus_dola.image_files import Recipe, file_name, read_recipe, save_image
from janus_dola.models.load import MINI, public_name
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings


@takes_settings
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw.")] = None,
    model: Model = MINI,
    outdir: OutDir = Path("generated_samples"),
    parallel_size: ParallelSize = 1,
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    seed: RandomSeed = "0",
    backend: Backend = "auto",
    engine: EngineName = "auto",
    window: WindowName = "auto",
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    size: Size = None,
    image_format: Format = "png",
    metadata: Metadata = True,
    from_image: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Draw the image in this file again, by its metadata. Add --model if that was a folder.",
        ),
    ] = None,
) -> None:
    """Draw one or several prompts and print the files written. The model fixes the size of images."""
    if from_image is not None:
        _refuse_other_settings(context)
        recipe = read_recipe(from_image)
        model = _model_of(recipe, model if _is_given(context, "model") else None)
        prompts, dtype = [recipe.prompt], recipe.dtype
        run = Settings(
            model, recipe.settings, 1, recipe.seed, image_format, quantize=recipe.quantize, window=recipe.window,
            metadata=metadata,
        )  # fmt: skip
    else:
        if not prompts:
            raise typer.BadParameter("give a prompt, or --from an image")
        run = Settings(
            model, settings, parallel_size, parse_seed(seed), image_format, quantize=quantize, window=parse_window(window),
            metadata=metadata,
        )  # fmt: skip
    hint_at_mini(run.model)
    pipe = JanusDoLa.from_pretrained(run.model, device, dtype, quantize=run.quantize)
    for path in _draw_to_files(pipe, prompts, outdir, run, backend, engine):
        typer.echo(path)


def _draw_to_files(
    pipe: JanusDoLa,
    prompts: list[str],
    outdir: Path,
    run: Settings,
    backend: str,
    engine: str,
) -> Iterator[Path]:
    drawn = pipe.stream(
        prompts,
        run.parallel_size,
        run.drawing,
        seed=run.seed,
        backend=backend,
        engine=engine,
        window=run.window,
        progress=sys.stderr.isatty(),
    )
    outdir.mkdir(parents=True, exist_ok=True)
    run = run.with_dtype(str(pipe.parts.stored_dtype).removeprefix("torch."))
    for number, found in enumerate(drawn):
        prompt = prompts[found.prompt]
        task = Task(number, found.prompt, found.k, prompt, found.seed, run.drawing)
        path = outdir / file_name(found.prompt, prompt, found.k, run.image_format)
        save_image(found.image, path, task.recipe(run))
        yield path


def _model_of(recipe: Recipe, given: str | None) -> str:
    """The model to draw an image again with. Of one that lay in a folder the image has only that folder's name."""
    if given is None:
        if recipe.model != MINI and "/" not in recipe.model and not Path(recipe.model).is_dir():
            raise typer.BadParameter(
                f"the model of this image lay in a folder {recipe.model!r}, which is not here: say by --model where it is"
            )
        return recipe.model
    if public_name(given) != recipe.model:
        warnings.warn(f"the image was drawn with model {recipe.model!r}, and now with {given!r}", stacklevel=2)
    return given


def _is_given(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _refuse_other_settings(context: typer.Context) -> None:
    """With --from, everything that decides what is drawn comes from the image."""
    allowed = {"from_image", "model", "outdir", "backend", "engine", "device", "image_format", "metadata"}
    given = [name for name in context.params if name not in allowed and _is_given(context, name)]
    if given:
        raise typer.BadParameter(f"--from takes everything but the model from the image; leave out: {', '.join(given)}")
