"""`janus-dola generate`: one or several prompts, drawn to files."""

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_dola.arguments import MINI, ImageFormat
from janus_dola.cli.names import settings_named
from janus_dola.cli.options import (
    CONTRAST,
    FILES,
    Backend,
    CodesAPass,
    Device,
    Dtype,
    Format,
    Launch,
    Metadata,
    Model,
    OutDir,
    Overwrite,
    ParallelSize,
    Quantize,
    RandomSeed,
    Revision,
    Size,
    hint_at_mini,
    parse_seed,
    parse_window,
    takes_settings,
)
from janus_dola.images.files import TEMPLATE, file_name, make_folder, name_beside, refuse_existing, write_new
from janus_dola.settings import DrawSettings

if TYPE_CHECKING:
    from janus_dola.batch import RunSettings
    from janus_dola.images.recipe import Recipe
    from janus_dola.pipeline import JanusDoLa

_LONGEST_NAME = 230  # bytes of the 255 that a disk allows, so that "_no-dola_again" fits, too


@takes_settings
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    parallel_size: ParallelSize = 1,
    seed: RandomSeed = "0",
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    compare: Annotated[
        bool, typer.Option("--compare", rich_help_panel=CONTRAST, help="Draw the baseline, too, from the same seeds.")
    ] = False,
    layer_map: Annotated[
        bool, typer.Option("--map", rich_help_panel=CONTRAST, help="Beside each image, a map of what DoLa did in it.")
    ] = False,
    outdir: OutDir = Path("generated_samples"),
    from_image: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            rich_help_panel=FILES,
            help="Draw the image in this file again, by its metadata. Add --model if that was a folder.",
        ),
    ] = None,
    image_format: Format = "png",
    metadata: Metadata = True,
    overwrite: Overwrite = False,
    size: Size = None,
    model: Model = MINI,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    backend: Backend = "auto",
    launch: Launch = "auto",
    window: CodesAPass = "auto",
) -> None:
    """Draw one or several prompts and print the files written. The model fixes the size of images.

    A file is named after its prompt, the settings that are not the default ones, and its number.
    """
    from janus_dola.batch import RunSettings
    from janus_dola.images.recipe import read_recipe
    from janus_dola.models.checkpoint.load import public_name
    from janus_dola.pipeline import JanusDoLa, check_before_loading

    drawn_dtype: str | None = dtype
    if from_image is not None:
        _refuse_other_settings(context)
        recipe = read_recipe(from_image)
        model = _model_of(recipe, model if _is_given(context, "model") else None)
        if public_name(model) == recipe.model:
            revision = revision or recipe.revision
        prompts, drawn_dtype = [recipe.prompt], recipe.dtype
        run = RunSettings(
            model, recipe.settings, 1, recipe.seed, image_format, quantize=recipe.quantize, window=recipe.window,
            metadata=metadata, revision=revision,
        )  # fmt: skip
        path_by = partial(_path_again, outdir, from_image, image_format, compare)
    else:
        if not prompts:
            raise typer.BadParameter("give a prompt, or --from an image")
        run = RunSettings(
            model, settings, parallel_size, parse_seed(seed), image_format, quantize=quantize, window=parse_window(window),
            metadata=metadata, revision=revision,
        )  # fmt: skip
        path_by = partial(_path, context, prompts, run)
    if run.drawing.dola is None and (compare or layer_map):
        raise typer.BadParameter("--compare and --map are for images with DoLa, not for the baseline")
    runs = [run, replace(run, drawing=replace(run.drawing, dola=None))] if compare else [run]
    paths = [path_by(each.drawing.dola is not None) for each in runs]
    numbers = [(index, k) for index in range(len(prompts)) for k in range(run.parallel_size)]
    wanted = [path(*number) for path in paths for number in numbers]
    if layer_map:
        wanted += [_map_of(paths[0](*number)) for number in numbers]
    refuse_existing(wanted, overwrite)
    check_before_loading(
        run.model, device, drawn_dtype, run.revision, run.quantize,
        settings=run.drawing, backend=backend, launch=launch, prompts=prompts,
    )  # fmt: skip
    make_folder(outdir)
    hint_at_mini(run.model)
    pipe = JanusDoLa.from_pretrained(run.model, device, drawn_dtype, run.revision, run.quantize)
    for each, path in zip(runs, paths, strict=True):
        with_map = layer_map and each.drawing.dola is not None
        for written in _draw_to_files(pipe, prompts, each, path, backend, launch, with_map, overwrite):
            typer.echo(written)


def _path(
    context: typer.Context, prompts: list[str], run: "RunSettings", with_dola: bool
) -> Callable[[int, int], Path]:
    """Returns where image k of prompt i goes."""
    from janus_dola.models.checkpoint.load import public_name

    values = {**context.params, "dola": with_dola, "seed": str(run.seed), "model": public_name(run.model)}
    named = settings_named(values, {each.name: each.default for each in context.command.params if each.name})

    template = "{index}_{words}_{settings}_p{k}" if named else TEMPLATE

    def path(index: int, k: int) -> Path:
        fields = {"index": index, "words": prompts[index], "settings": named, "k": k}
        return values["outdir"] / file_name(fields, run.image_format, template, _LONGEST_NAME)

    return path


def _path_again(
    outdir: Path, from_image: Path, image_format: ImageFormat, compare: bool, with_dola: bool
) -> Callable[[int, int], Path]:
    """Returns where an image goes that is drawn again."""
    more = "no-dola_again" if compare and not with_dola else "again"
    return lambda index, k: outdir / name_beside(from_image, more, image_format)


def _map_of(path: Path) -> Path:
    return path.with_name(name_beside(path, "map", "png"))


def _draw_to_files(
    pipe: "JanusDoLa",
    prompts: list[str],
    run: "RunSettings",
    path: Callable[[int, int], Path],
    backend: str,
    launch: str,
    with_map: bool,
    overwrite: bool,
) -> Iterator[Path]:
    from janus_dola.images.recipe import encode_image

    drawn = pipe.stream(
        prompts,
        run.parallel_size,
        run.drawing,
        seed=run.seed,
        backend=backend,
        launch=launch,
        window=run.window,
        progress=sys.stderr.isatty(),
    )
    for found in drawn:
        file = path(found.prompt, found.k)
        recipe = found.recipe if run.metadata else None
        write_new(file, encode_image(found.image, run.image_format, recipe), overwrite)
        yield file
        if with_map:
            write_new(_map_of(file), encode_image(found.layer_map(), "png", None), overwrite)
            yield _map_of(file)


def _model_of(recipe: "Recipe", given: str | None) -> str:
    """The model to draw an image again with. Of one that lay in a folder the image has only that folder's name."""
    from janus_dola.models.checkpoint.load import public_name

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
    allowed = {
        "from_image", "model", "revision", "outdir", "backend", "launch", "device", "image_format", "metadata",
        "overwrite", "compare", "layer_map",
    }  # fmt: skip
    given = [name for name in context.params if name not in allowed and _is_given(context, name)]
    if given:
        raise typer.BadParameter(f"--from takes everything but the model from the image; leave out: {', '.join(given)}")
