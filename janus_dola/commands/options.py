"""Options that commands share, and what their texts mean."""

import functools
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from janus_dola.batch.run_file import RunFile
from janus_dola.checks import Window, check_window
from janus_dola.image_files import ImageFormat
from janus_dola.models.load import HINT_AT_MINI, MINI
from janus_dola.models.quantize import Quantization
from janus_dola.settings import SETTINGS, DrawSettings, Setting

Model = Annotated[str, typer.Option(help='"mini", a folder, or a repository such as deepseek-community/Janus-Pro-1B.')]
OutDir = Annotated[Path, typer.Option(help="Folder for the images.")]
ParallelSize = Annotated[int, typer.Option(help="Images per prompt.")]
Seed = Annotated[int, typer.Option(help="Image k of prompt i has the seed SEED + i * PARALLEL_SIZE + k.")]
RandomSeed = Annotated[
    str,
    typer.Option(
        "--seed", help='Image k of prompt i has the seed SEED + i * PARALLEL_SIZE + k; "random" or -1 picks one.'
    ),
]
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
    typer.Option(
        help="float32, bfloat16, or float16, the fastest on a CPU.", show_default="float32 on a CPU, else bfloat16"
    ),
]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Write prompt, model and settings into each image.")
]
Format = Annotated[ImageFormat, typer.Option("--format", help="File format of the images.")]


def _refuse_size(value: str | None) -> None:
    if value is not None:
        raise typer.BadParameter(
            "the model fixes the size of its images (Janus-Pro: 384 x 384); resize the files instead"
        )


Size = Annotated[str | None, typer.Option("--size", "--width", "--height", hidden=True, callback=_refuse_size)]


def parse_seed(text: str, outdir: Path | None = None) -> int:
    """A seed, up to 2**63 - 1; "random", or -1 as other programs send it, picks one. What is drawn says which.

    Args:
        outdir: of a run; one that was begun there goes on with its seed instead.
    Raises:
        ValueError: it is neither.
    """
    if text in ("random", "-1"):
        begun = None if outdir is None else RunFile.read(outdir)
        return random.getrandbits(48) if begun is None else begun.settings["seed"]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'seed must be an integer, "random" or -1, got {text!r}') from None


def parse_window(text: str) -> Window:
    """ "auto", or a number of codes.

    Raises:
        ValueError: it is neither.
    """
    return check_window(cast(Window, number_or_text(text)))


def number_or_text(text: str) -> int | str:
    """An int where a text is one; else the text."""
    return int(text) if text.isdecimal() else text


def takes_settings(command: Callable) -> Callable:
    """Gives a command an option for each of `SETTINGS` in place of its parameter `settings`, which gets them all."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += [parameter] if parameter.name != "settings" else map(_option, SETTINGS, SETTINGS.values())

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        own = {name: given.pop(name) for name in SETTINGS}
        command(settings=DrawSettings().changed(_parsed(own)), **given)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _option(name: str, setting: Setting) -> inspect.Parameter:
    """How the command line shows a setting."""
    names = ["--dola/--no-dola"] if name == "dola" else []
    option = typer.Option(*names, help=setting.help, show_default=setting.nothing or True)
    default = setting.default
    # What is made of words is a word here.
    kind = setting.type if setting.parse is None else str if default is not None else str | None
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, option]
    )


def _parsed(given: dict[str, Any]) -> dict[str, Any]:
    """The values that options stand for.

    Raises:
        ValueError: words mean nothing.
    """
    found = dict(given)
    for name, setting in SETTINGS.items():
        if setting.parse is not None and isinstance(given[name], str):
            found[name] = setting.parse(given[name])
    return found


def hint_at_mini(model: str) -> None:
    """Says what the mini model can draw, where it is the one."""
    if model == MINI:
        typer.echo(HINT_AT_MINI, err=True)
