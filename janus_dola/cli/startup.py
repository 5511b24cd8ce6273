"""Imports torch and transformers for the command line, and sees to it that only janus-dola talks to its user."""

import logging
import os
import signal
import sys
import warnings
from importlib import import_module
from types import ModuleType


def import_quietly(name: str) -> ModuleType:
    """Imports a module that takes seconds, and ends at once, without a traceback, on Ctrl-C meanwhile."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    module = import_module(name)
    signal.signal(signal.SIGINT, before)
    return module


def import_libraries() -> None:
    """Imports what takes seconds, when a command needs it; help and wrong options come without it."""
    import_quietly("torch")
    mute_torchao()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of what libraries will change: not for users
    warnings.filterwarnings("ignore", module=r"PIL\.")  # images that it warns of carry no recipe
    import_quietly("janus_dola.pipeline")
    import huggingface_hub
    import transformers

    from janus_dola.cli.threads import use_processors

    use_processors()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what is wrong with a model is said by the one line
    huggingface_hub.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()


def mute_torchao() -> None:
    """transformers imports torchao where it is installed, which says on stderr what of it this machine lacks."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
