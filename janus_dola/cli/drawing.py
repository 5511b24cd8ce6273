"""Draws prompts to files, for `janus-dola generate` and `janus-dola again`."""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from janus_dola.cli.options import hint_at_mini
from janus_dola.images.files import make_folder, name_beside, refuse_existing, write_new

if TYPE_CHECKING:
    from janus_dola.batch import RunSettings
    from janus_dola.compute import Compute
    from janus_dola.images.recipe import Recipe
    from janus_dola.pipeline import JanusDoLa


def draw_to_files(
    prompts: Sequence[str],
    run: "RunSettings",
    compute: "Compute",
    name: Callable[["RunSettings", int, int], str],
    outdir: Path,
    overwrite: bool,
    compare: bool,
    layer_map: bool,
    again: "Recipe | None" = None,
) -> None:
    """Draws prompts, and prints each file when it is written. Nothing is loaded or drawn if a file would be in the way.

    Args:
        name: returns the file's name for settings, a prompt's index and the image's number among the prompt's images.
        compare: draws the baseline, too, from the same seeds.
        layer_map: writes a map beside each image that is drawn with a contrast.
        again: the recipe of the image that is drawn again; a warning says why another image comes out, where one does.
    """
    from janus_dola.images.recipe import encode_image
    from janus_dola.pipeline import JanusDoLa

    if run.drawing.contrast is None and (compare or layer_map):
        raise typer.BadParameter("--compare and --map are for images with a contrast, not for the baseline")
    runs = [run, replace(run, drawing=replace(run.drawing, contrast=None))] if compare else [run]

    def files(each: "RunSettings", index: int, k: int) -> list[Path]:
        path = outdir / name(each, index, k)
        has_map = layer_map and each.drawing.contrast is not None
        return [path, path.with_name(name_beside(path, "map", "png"))] if has_map else [path]

    def write(path: Path, content: bytes) -> None:
        write_new(path, content, overwrite)
        typer.echo(path)

    numbers = [(index, k) for index in range(len(prompts)) for k in range(run.parallel_size)]
    refuse_existing((path for each in runs for number in numbers for path in files(each, *number)), overwrite)
    JanusDoLa.check(
        run.model, compute.device, run.dtype, run.revision, run.quantize,
        settings=run.drawing, backend=compute.backend, launch=compute.launch, prompts=prompts,
        pictures_for="--map" if layer_map else run.pictures_for,
    )  # fmt: skip
    make_folder(outdir)
    hint_at_mini(run.model)
    pipe = JanusDoLa.from_pretrained(run.model, compute.device, run.dtype, run.revision, run.quantize)
    if again is not None and (reason := _why_another(again, pipe)):
        warnings.warn(f"this is not the image again: {reason}", stacklevel=2)
    for each in runs:
        images = pipe.stream(
            prompts, each.parallel_size, each.drawing, seed=each.seed, window=each.window, backend=compute.backend,
            launch=compute.launch, slots=again.slots if again else None,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        for drawn in images:
            path, *maps = files(each, drawn.prompt, drawn.k)
            write(path, drawn.encoded(each.image_format, each.metadata))
            for map_path in maps:
                write(map_path, encode_image(drawn.layer_map(), "png", None))


def _why_another(recipe: "Recipe", pipe: "JanusDoLa") -> str | None:
    """Says why a pipe draws another image by a recipe, if it does; a recipe of old says nothing of weights."""
    now = pipe.recipe(recipe.settings)
    if recipe.weights not in (None, now.weights):
        return (
            f"it was drawn with other weights than {pipe!r} has. They were trained, or rounded to another dtype before, or "
            "the model has changed since"
        )
    if recipe.slots is not None and pipe.image_model.dtype.itemsize != 2:
        return f"it was computed in {recipe.dtype}, and {pipe!r} computes in float32"
    return None
