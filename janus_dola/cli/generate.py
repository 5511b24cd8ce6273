"""`janus-dola generate`: draws one or several prompts to files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli import options
from janus_dola.cli.again import again
from janus_dola.cli.drawing import draw_to_files
from janus_dola.cli.names import settings_named
from janus_dola.images.files import TEMPLATE, file_name
from janus_dola.settings import SETTINGS, DrawSettings

if TYPE_CHECKING:
    from janus_dola.batch import RunSettings

_LONGEST_NAME = 230  # bytes of the 255 that a disk allows: "_no-dola_again" fits, too
_ALLOWED_WITH_FROM = (
    "from_image", "model", "revision", "outdir", "backend", "launch", "device", "image_format", "metadata", "overwrite",
    "compare", "layer_map",
)  # fmt: skip


@options.takes_settings
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    parallel_size: options.ParallelSize = 1,
    seed: options.RandomSeed = "0",
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    compare: options.Compare = False,
    layer_map: options.LayerMap = False,
    outdir: options.OutDir = Path("generated_samples"),
    from_image: Annotated[Path | None, typer.Option("--from", hidden=True)] = None,
    image_format: options.Format = None,
    metadata: options.Metadata = True,
    overwrite: options.Overwrite = False,
    size: options.Size = None,
    model: options.Model = MINI,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    backend: options.Backend = "auto",
    launch: options.Launch = "auto",
    window: options.CodesPerPass = "auto",
) -> None:
    """Draw prompts, and print the files written.

    A file name shows the prompt, the settings that are not the defaults, and the image's number.

    The model fixes the size of its images. `janus-dola again FILE` draws an image again.
    """
    from janus_dola.batch import RunSettings
    from janus_dola.compute import Compute
    from janus_dola.models.checkpoint.hub import public_name

    if from_image is not None:  # the old way to say `janus-dola again`
        given = [
            name for name in context.params
            if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        ]  # fmt: skip
        refused = [name for name in given if name not in _ALLOWED_WITH_FROM]
        if refused:
            raise typer.BadParameter(
                f"--from takes everything but the model from the image; leave out: {', '.join(refused)}"
            )
        files = from_image, compare, layer_map, outdir, image_format, metadata, overwrite
        again(*files, model if "model" in given else None, revision, device, backend, launch)
        return
    if not prompts:
        raise typer.BadParameter("give a prompt; `janus-dola again FILE` draws an image again")
    base, codes = options.parse_seed(seed), options.parse_window(window)
    chosen = options.format_for(image_format, "png", model, revision)
    run = RunSettings(model, settings, parallel_size, base, chosen, dtype, quantize, codes, metadata, revision=revision)
    values = {name: value for name, value in context.params.items() if name not in SETTINGS}
    values |= {"seed": str(run.seed), "model": public_name(run.model)}
    defaults = {each.name: each.default for each in context.command.params if each.name}
    defaults |= {name: setting.default for name, setting in SETTINGS.items()}

    def name(run: "RunSettings", index: int, k: int) -> str:
        named = settings_named({**values, **run.drawing.to_json()}, defaults)
        fields = {"index": index, "words": prompts[index], "settings": named, "k": k}
        template = "{index}_{words}_{settings}_p{k}" if named else TEMPLATE
        return file_name(fields, run.image_format, template, _LONGEST_NAME)

    draw_to_files(prompts, run, Compute(device, backend, launch), name, outdir, overwrite, compare, layer_map)
