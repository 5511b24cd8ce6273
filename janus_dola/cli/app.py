"""Puts the commands together, and turns errors into one line. A new command is a module here and a name in `_COMMANDS`."""

import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from typing import Annotated, Any

import typer

from janus_dola.cli.again import again
from janus_dola.cli.answer import answer
from janus_dola.cli.batch import batch
from janus_dola.cli.clip import clip
from janus_dola.cli.demo import demo
from janus_dola.cli.generate import generate
from janus_dola.cli.geneval import geneval
from janus_dola.cli.info import info
from janus_dola.cli.lens import lens
from janus_dola.cli.options import ListsOfWords
from janus_dola.cli.profile import profile
from janus_dola.cli.serve import serve
from janus_dola.cli.startup import import_libraries
from janus_dola.cli.terminal import complain, prepare_streams

_COMMANDS = (generate, again, batch, serve, answer, info, demo, clip, geneval, profile, lens)


def _spelling(token: str) -> str:
    """Returns an option as it is declared: --parallel_size is --parallel-size, and --engine is the old --launch."""
    return "launch" if token == "engine" else token.replace("_", "-")


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"token_normalize_func": _spelling, "help_option_names": ["-h", "--help"]},
)


def _say_version(given: bool) -> None:
    if given:
        others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        typer.echo(f"janus-dola {version('janus-dola')} ({others}, Python {sys.version.split()[0]})")
        raise typer.Exit


@app.callback()
def _janus_dola(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Draw images with DeepSeek Janus, and with decoding that contrasts its layers: DoLa or SLED."""


def prepared(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command so that the slow libraries are imported only once its options are read."""

    @wraps(command)
    def with_libraries(*args: Any, **kwargs: Any) -> None:
        import_libraries()
        command(*args, **kwargs)

    return with_libraries


for _command in _COMMANDS:
    app.command(cls=ListsOfWords)(prepared(_command))


def batch_alone() -> typer.Typer:
    """Returns the batch command as a command line of its own."""
    settings = app.info.context_settings
    alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False, context_settings=settings)
    alone.command()(prepared(batch))
    return alone


def run(command: typer.Typer) -> None:
    """Runs a command line; wrong input ends in one line on stderr and exit status 2."""
    prepare_streams()
    try:
        command()
    except (ValueError, OSError, ImportError) as error:
        complain(f"error: {error}")
        sys.exit(2)
    except RuntimeError as error:
        complain(f"error: {_message(error)}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _message(error: RuntimeError) -> object:
    """Returns what a user is told about an error that can happen to a valid command; raises other errors again."""
    import torch

    from janus_dola.batch.worker import WorkersLostError
    from janus_dola.images.outputs import NonFiniteError

    if isinstance(error, NonFiniteError | WorkersLostError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory: draw fewer images at once, take a smaller model or dtype, or --quantize int8"
    raise error


if __name__ == "__main__":
    run(app)
