"""`janus-dola answer`: answers a question about pictures in words."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_dola.arguments import MAX_SEED, MINI, integer
from janus_dola.cli.options import Device, Dtype, Model, Revision, parse_seed, takes_contrast
from janus_dola.contrasts import DEFAULT_CONTRAST, Contrast

if TYPE_CHECKING:
    from PIL import Image

_answer_option = partial(typer.Option, rich_help_panel="The answer")


@takes_contrast
def answer(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="One or several pictures.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you ask about them.")],
    model: Model = MINI,
    revision: Revision = None,
    max_new_tokens: Annotated[int, _answer_option(min=1, help="Tokens that the answer may have.")] = 256,
    temperature: Annotated[float, _answer_option(min=0, help="0 is greedy: the same answer each time.")] = 0.0,
    contrast: Contrast | None = DEFAULT_CONTRAST,
    seed: Annotated[
        str, _answer_option(metavar="N|random", help="Used with a temperature above 0; random picks one.")
    ] = "0",
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Answer a question about pictures, and print the answer while it is written.

    "mini", the default model, says which coloured shape a picture shows, whatever the question is.
    """
    import torch

    from janus_dola.pipeline import JanusDoLa
    from janus_dola.settings import DrawSettings

    JanusDoLa.check(model, device, dtype, revision, settings=DrawSettings(contrast=contrast))
    torch_seed, pictures = integer("seed", parse_seed(seed), 0, MAX_SEED), [_open(path) for path in images]
    pipe = JanusDoLa.from_pretrained(model, device, dtype, revision)
    torch.manual_seed(torch_seed)
    for piece in pipe.answer(pictures, question, contrast, max_new_tokens, temperature, stream=True):
        typer.echo(piece, nl=False)
    typer.echo()


def _open(path: Path) -> "Image.Image":
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"IMAGE must be a picture that Pillow can read, got {path}: {error}") from error
