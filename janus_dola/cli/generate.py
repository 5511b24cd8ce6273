"""`janus-dola generate`: draws one or several prompts to files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_dola.arguments import MINI
from janus_dola.cli.again import again
from janus_dola.cli.drawing import Output, draw_to_files
from janus_dola.cli.names import settings_named
from janus_dola.cli.options import (
    Backend,
    CodesPerPass,
    Compare,
    Device,
    Dtype,
    Format,
    Launch,
    LayerMap,
    Metadata,
    Model,
    OutDir,
    Overwrite,
    ParallelSize,
    Quantize,
    RandomSeed,
    Revision,
    Size,
    parse_seed,
    parse_window,
    takes_settings,
)
from janus_dola.images.files import TEMPLATE, file_name
from janus_dola.settings import SETTINGS, DrawSettings

if TYPE_CHECKING:
    from janus_dola.batch import RunSettings

_LONGEST_NAME = 230  # bytes of the 255 that a disk allows: "_no-dola_again" fits, too
_ALLOWED_WITH_FROM = (
    "from_image", "model", "revision", "outdir", "backend", "launch", "device", "image_format", "metadata", "overwrite",
    "compare", "layer_map",
)  # fmt: skip


@takes_settings
def generate(
    context: typer.Context,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    parallel_size: ParallelSize = 1,
    seed: RandomSeed = "0",
    settings: DrawSettings = DrawSettings(),  # noqa: B008 (frozen)
    compare: Compare = False,
    layer_map: LayerMap = False,
    outdir: OutDir = Path("generated_samples"),
    from_image: Annotated[Path | None, typer.Option("--from", hidden=True)] = None,
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
    window: CodesPerPass = "auto",
) -> None:
    """Draw prompts, and print the files written.

    A file name shows the prompt, the settings that are not the defaults, and the image's number. The model fixes the size
    of its images. `janus-dola again FILE` draws an image again.
    """
    from janus_dola.batch import RunSettings
    from janus_dola.compute import Compute
    from janus_dola.models.checkpoint.hub import public_name

    if from_image is not None:  # the old way to say `janus-dola again`
        _refuse_other_settings(context)
        given = model if _is_given(context, "model") else None
        files = from_image, compare, layer_map, outdir, image_format, metadata, overwrite
        again(*files, given, revision, device, backend, launch)
        return
    if not prompts:
        raise typer.BadParameter("give a prompt; `janus-dola again FILE` draws an image again")
    run = RunSettings(
        model, settings, parallel_size, parse_seed(seed), image_format, dtype, quantize, parse_window(window), metadata,
        revision=revision,
    )  # fmt: skip
    values = {name: value for name, value in context.params.items() if name not in SETTINGS}
    values |= {"seed": str(run.seed), "model": public_name(run.model)}
    defaults = {each.name: each.default for each in context.command.params if each.name}
    defaults |= {name: setting.default for name, setting in SETTINGS.items()}

    def name(run: "RunSettings", index: int, k: int) -> str:
        named = settings_named({**values, **run.drawing.to_json()}, defaults)
        fields = {"index": index, "words": prompts[index], "settings": named, "k": k}
        template = "{index}_{words}_{settings}_p{k}" if named else TEMPLATE
        return file_name(fields, run.image_format, template, _LONGEST_NAME)

    output = Output(outdir, overwrite, compare, layer_map)
    draw_to_files(prompts, run, Compute(device, backend, launch), output, name)


def _is_given(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _refuse_other_settings(context: typer.Context) -> None:
    """Refuses options beside --from that decide what is drawn: the image decides it."""
    given = [name for name in context.params if name not in _ALLOWED_WITH_FROM and _is_given(context, name)]
    if given:
        raise typer.BadParameter(f"--from takes everything but the model from the image; leave out: {', '.join(given)}")
