"""Holds the options that commands share, and reads their values."""

import functools
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from janus_dola import arguments
from janus_dola.settings import SETTINGS, DrawSettings, Setting

# The panels of --help, and options in them.
DRAWN, CONTRAST, FILES, MACHINE = "What is drawn", "Contrast", "Files", "Model and machine"
drawn_option = functools.partial(typer.Option, rich_help_panel=DRAWN)
contrast_option = functools.partial(typer.Option, rich_help_panel=CONTRAST)
file_option = functools.partial(typer.Option, rich_help_panel=FILES)
machine_option = functools.partial(typer.Option, rich_help_panel=MACHINE)
_SEEDS = "Image k of prompt i gets the seed SEED + i * PARALLEL_SIZE + k"

Model = Annotated[
    str, machine_option(help='"mini", a folder, or a Hugging Face repository such as deepseek-community/Janus-Pro-1B.')
]
Revision = Annotated[
    str | None, machine_option(help="Branch, tag or commit of the model's repository.", show_default="the newest")
]
OutDir = Annotated[Path, file_option(help="Folder for the files; made if it is not there.")]
ParallelSize = Annotated[int, drawn_option(help="Images per prompt.")]
Seed = Annotated[int, drawn_option(help=f"{_SEEDS}.")]
RandomSeed = Annotated[str, drawn_option("--seed", metavar="N|random", help=f"{_SEEDS}; random (or -1) picks SEED.")]
Backend = Annotated[
    arguments.BackendName, machine_option(help="What computes the contrast of layers; triton needs a GPU.")
]
Launch = Annotated[
    arguments.LaunchName,
    machine_option("--launch", help="How model passes are run; graph needs a GPU, compile starts slowly."),
]
CodesPerPass = Annotated[
    arguments.WindowName, machine_option(help="Codes decided per pass; changes the speed, not the image.")
]
Quantize = Annotated[
    arguments.Quantization | None,
    machine_option(help="Store the blocks' weights in 8 bits; this changes some tokens.", show_default="no"),
]
Device = Annotated[
    str | None,
    machine_option(
        metavar="NAME", help="cpu, cuda (a GPU), cuda:1 or mps (Apple's GPU).", show_default="a GPU if there is one"
    ),
]
Dtype = Annotated[
    arguments.DtypeName | None,
    machine_option(
        help="Number format of the weights; `janus-dola info` says what is fastest on a CPU.",
        show_default="float32 on a CPU, else bfloat16",
    ),
]
Metadata = Annotated[
    bool, file_option("--metadata/--no-metadata", help="Write prompt, model and settings into each image.")
]
_format_option = functools.partial(file_option, "--format", help="File format; safetensors holds codes, not pixels.")
Format = Annotated[arguments.ImageFormat | None, _format_option(show_default="png, or safetensors if codes are all")]
BatchFormat = Annotated[
    arguments.ImageFormat | None, _format_option(show_default="jpg, or safetensors if codes are all")
]
Overwrite = Annotated[bool, file_option("--overwrite", help="Replace files that exist.")]
Compare = Annotated[bool, contrast_option("--compare", help="Also draw the baseline, from the same seeds.")]
LayerMap = Annotated[bool, contrast_option("--map", help="Write a map of what the contrast did beside each image.")]


class ListsOfWords(TyperCommand):
    """A command whose options for lists take all words that follow them: `--served-model-name A B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads options as click does, with the option repeated before each further word."""
        lists = {name for each in self.params if getattr(each, "multiple", False) for name in each.opts}
        words, option = [], ""
        for before, word in zip(["", *args], args, strict=False):
            if word.startswith("-"):
                option = word.partition("=")[0].replace("_", "-")
            elif option in lists and ("=" in before or not before.startswith("-")):
                words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)


def _refuse_size(value: str | None) -> None:
    if value is not None:
        raise typer.BadParameter(
            "the model fixes the size of its images (Janus-Pro: 384 x 384); resize the files instead"
        )


Size = Annotated[str | None, typer.Option("--size", "--width", "--height", hidden=True, callback=_refuse_size)]


def parse_seed(text: str, outdir: Path | None = None) -> int:
    """Parses a seed; "random", or -1 as other programs send it, picks one, which images and manifests show.

    A batch run that was begun in `outdir` goes on with its seed instead of a random one.
    """
    if text in ("random", "-1"):
        from janus_dola.batch.run_settings import RunFile

        begun = None if outdir is None else RunFile.read(outdir)
        return random.getrandbits(48) if begun is None else begun.settings["seed"]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'seed must be an integer, "random" or -1, got {text!r}') from None


def parse_window(text: str) -> arguments.Window:
    """Parses a window: "auto" or a number of codes; a ValueError tells which there are."""
    return arguments.check_window(cast(arguments.Window, number_or_text(text)))


def number_or_text(text: str) -> int | str:
    """Returns an int if the text is one, else the text."""
    return int(text) if text.isdecimal() else text


def takes_settings(command: Callable) -> Callable:
    """Gives a command an option for each of `SETTINGS` in place of its parameter `settings`, which gets them all."""
    return _with_options(command, "settings", SETTINGS, lambda settings: settings)


def takes_contrast(command: Callable) -> Callable:
    """Gives a command the options of a contrast alone in place of its parameter `contrast`."""
    options = {name: setting for name, setting in SETTINGS.items() if _is_of_contrast(name, setting)}
    return _with_options(command, "contrast", options, lambda settings: settings.contrast)


def _is_of_contrast(name: str, setting: Setting) -> bool:
    return name in ("contrast", "dola") or bool(setting.methods)


def _with_options(
    command: Callable, name: str, options: dict[str, Setting], value: Callable[[DrawSettings], object]
) -> Callable:
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += [parameter] if parameter.name != name else map(_option, options, options.values())

    @functools.wraps(command)
    def with_options(**kwargs: Any) -> None:
        given = {option: kwargs.pop(option) for option in options}
        # A value that is parsed came as a word.
        changes = {
            option: parse(word) if (parse := options[option].parse) else word
            for option, word in given.items()
            if word is not None
        }
        command(**{name: value(DrawSettings().changed(changes))}, **kwargs)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _option(name: str, setting: Setting) -> inspect.Parameter:
    """Declares the option of a setting. Its default is None, so that only what a user gives is looked at."""
    option = typer.Option(
        *(["--dola/--no-dola"] if name == "dola" else []),
        rich_help_panel=CONTRAST if _is_of_contrast(name, setting) else DRAWN,
        help=setting.help,
        show_default=setting.nothing or str(setting.default),
    )
    kind = setting.type if setting.parse is None else str  # a value that is parsed comes as a word
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind | None, option]
    )


def format_for(
    given: arguments.ImageFormat | None, usual: arguments.ImageFormat, model: str, revision: str | None
) -> arguments.ImageFormat:
    """Returns the format that a user gave, else the usual one, or codes, and says so, where another model paints them."""
    from janus_dola.images.recipe import CODES
    from janus_dola.models.checkpoint.load import paints

    if given is not None or paints(model, revision):
        return given or usual
    typer.echo(f"{model} draws codes, which another model paints: each image is a file .{CODES}", err=True)
    return CODES


def hint_at_mini(model: str) -> None:
    """Says what the mini model can draw, if the model is "mini"."""
    if model == arguments.MINI:
        typer.echo(arguments.HINT_AT_MINI, err=True)
