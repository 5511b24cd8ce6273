"""Starts the command line: `janus-dola`, or `python -m janus_dola`."""

import os
import signal
from importlib import import_module
from types import ModuleType


def main() -> None:
    """Runs the command line; wrong input ends in one line on stderr and exit status 2."""
    cli = import_quietly("janus_dola.cli")
    cli.run(cli.app)


def import_quietly(name: str) -> ModuleType:
    """Imports a module that takes seconds, and ends at once, without a traceback, on Ctrl-C meanwhile."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    module = import_module(name)
    signal.signal(signal.SIGINT, before)
    return module


if __name__ == "__main__":
    main()
