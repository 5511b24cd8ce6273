"""`python -m janus_dola.run_batch_prompts`: the batch command under its original name and flags."""

from janus_dola.__main__ import import_quietly


def main() -> None:
    """Runs the command line with `batch` alone."""
    cli = import_quietly("janus_dola.cli")
    cli.run(cli.batch_alone())
