"""`janus-dola again`: draws an image again by the recipe in its file."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli import options
from janus_dola.cli.drawing import draw_to_files
from janus_dola.images.files import name_beside

if TYPE_CHECKING:
    from janus_dola.batch import RunSettings
    from janus_dola.images.recipe import Recipe


def again(
    image: Annotated[Path, typer.Argument(metavar="FILE", help="An image, or codes, that janus-dola drew.")],
    compare: options.Compare = False,
    layer_map: options.LayerMap = False,
    outdir: options.OutDir = Path("generated_samples"),
    image_format: options.Format = None,
    metadata: options.Metadata = True,
    overwrite: options.Overwrite = False,
    model: Annotated[
        str | None,
        options.machine_option(
            help="The model's folder, if it was in one; the image holds only its name.",
            show_default="the image's model",
        ),
    ] = None,
    revision: options.Revision = None,
    device: options.Device = None,
    backend: options.Backend = "auto",
    launch: options.Launch = "auto",
) -> None:
    """Draw an image again, from the prompt, seed and settings that its file holds.

    Writes OUTDIR/NAME_again.png. --map shows what the contrast did, --compare draws the baseline from the same seed.
    """
    from janus_dola.batch import RunSettings
    from janus_dola.compute import Compute
    from janus_dola.images.recipe import read_recipe

    recipe = read_recipe(image)
    model = _model_of(recipe, model)
    if model == recipe.model:  # not a folder that stands for it
        revision = revision or recipe.revision
    chosen = options.format_for(image_format, "png", model, revision)
    run = RunSettings(
        model, recipe.settings, 1, recipe.seed, chosen, recipe.dtype, recipe.quantize, recipe.window, metadata,
        revision=revision,
    )  # fmt: skip

    def name(run: "RunSettings", index: int, k: int) -> str:
        is_baseline = compare and run.drawing.contrast is None
        return name_beside(image, "no-dola_again" if is_baseline else "again", chosen)

    compute = Compute(device, backend, launch)
    draw_to_files([recipe.prompt], run, compute, name, outdir, overwrite, compare, layer_map, recipe)


def _model_of(recipe: "Recipe", given: str | None) -> str:
    """Returns the model to draw an image again with. The image holds only the folder's name of a model in a folder."""
    from janus_dola.models.checkpoint.hub import public_name

    if given is None:
        if recipe.model != MINI and "/" not in recipe.model and not Path(recipe.model).is_dir():
            raise typer.BadParameter(
                f"the image was drawn with a model in a folder {recipe.model!r}, which is not here: name its path by --model"
            )
        return recipe.model
    if public_name(given) != recipe.model:
        warnings.warn(f"the image was drawn with model {recipe.model!r}, and now with {given!r}", stacklevel=2)
    return given
