"""The command line: `janus-dola generate`, `batch`, `serve`, `geneval`, `clip`, `info`, `profile` and `demo`."""

import sys
import warnings

import torch
import transformers
import typer

from janus_dola.batch.pool import WorkersLostError
from janus_dola.commands.batch import batch
from janus_dola.commands.clip import clip
from janus_dola.commands.demo import demo
from janus_dola.commands.generate import generate
from janus_dola.commands.geneval import geneval
from janus_dola.commands.info import info
from janus_dola.commands.profile import profile
from janus_dola.commands.serve import serve
from janus_dola.outputs import NonFiniteError
from janus_dola.terminal import complain, prepare_streams
from janus_dola.threads import use_processors

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # --parallel_size is the same as --parallel-size.
    context_settings={
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
    help="Draw images with DeepSeek Janus and DoLa decoding.",
)
app.command()(generate)
app.command()(batch)
app.command()(serve)
app.command()(geneval)
app.command()(clip)
app.command()(info)
app.command()(profile)
app.command()(demo)


def batch_alone() -> typer.Typer:
    """The batch command as a command line of its own."""
    alone = typer.Typer(
        pretty_exceptions_enable=False, add_completion=False, context_settings=app.info.context_settings
    )
    alone.command()(batch)
    return alone


def run(command: typer.Typer) -> None:
    """Runs a command line; wrong input ends in one line on stderr and exit status 2."""
    prepare_streams()
    use_processors()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what is wrong with a model is said by the one line
    warnings.filterwarnings("ignore", module=r"PIL\.")  # images that it warns of carry no recipe
    try:
        command()
    except (ValueError, OSError, ImportError) as error:
        complain(f"error: {error}")
        sys.exit(2)
    except (NonFiniteError, WorkersLostError) as error:
        complain(f"error: {error}")
        sys.exit(1)
    except torch.OutOfMemoryError:
        complain("error: out of memory: draw fewer images at once, take a smaller model or dtype, or --quantize int8")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run(app)
