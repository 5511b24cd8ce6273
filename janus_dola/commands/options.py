"""Options that commands share, and what their texts mean."""

import random
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from janus_dola.batch.run_file import RunFile
from janus_dola.checks import Window, check_window
from janus_dola.config import DoLaConfig
from janus_dola.image_files import ImageFormat
from janus_dola.models.load import HINT_AT_MINI, MINI
from janus_dola.models.quantize import Quantization

Model = Annotated[str, typer.Option(help='"mini", a folder, or a repository such as deepseek-community/Janus-Pro-1B.')]
OutDir = Annotated[Path, typer.Option(help="Folder for the images.")]
ParallelSize = Annotated[int, typer.Option(help="Images per prompt.")]
CfgWeight = Annotated[float, typer.Option(help="Weight of classifier-free guidance.")]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What guidance leads away from, instead of from no words.", show_default="none")
]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
Alpha = Annotated[float, typer.Option(help="Plausibility threshold of DoLa, in [0, 1].")]
CandidateLayers = Annotated[str, typer.Option(help='"auto", or layers to choose from: 22,24,26,28.')]
PrematureLayer = Annotated[
    str | None,
    typer.Option(help='Always contrast with this layer; "final" contrasts with none.', show_default="by JSD"),
]
Dola = Annotated[bool, typer.Option("--dola/--no-dola", help="DoLa, or plain decoding.")]
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


def dola_of(enabled: bool, candidate_layers: str, alpha: float, premature_layer: str | None) -> DoLaConfig | None:
    """The contrast that the options ask for; None where it is turned off.

    Raises:
        ValueError: an option is out of range.
    """
    config = DoLaConfig(parse_layers(candidate_layers), alpha, parse_premature(premature_layer))
    return config if enabled else None


def hint_at_mini(model: str) -> None:
    """Says what the mini model can draw, where it is the one."""
    if model == MINI:
        typer.echo(HINT_AT_MINI, err=True)
