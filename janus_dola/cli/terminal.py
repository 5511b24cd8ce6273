"""Writes to the terminal: whole lines of printable text, whatever a text holds and whatever the terminal can show."""

import io
import os
import sys
import warnings

import typer


def prepare_streams() -> None:
    """Makes streams escape characters that the terminal's encoding lacks, so that output never stops a run.

    A stream that was closed before the process began is opened on nothing; otherwise the next file would take its number,
    and with it what libraries print.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    while closed and (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        os.set_inheritable(number, True)
    for name in closed:
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115 (for good)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *args, **kwargs: f"janus-dola: warning: {printable(message)}\n"


def printable(text: object) -> str:
    """Returns a text as one line with control characters escaped, so that what a file holds cannot steer the terminal."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def complain(text: object) -> None:
    """Prints a line on stderr."""
    typer.echo(f"janus-dola: {printable(text)}", err=True)
