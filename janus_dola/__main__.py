"""Starts the command line: `janus-dola`, or `python -m janus_dola`."""

from janus_dola.cli.startup import end_by_sigterm, import_quietly


def main() -> None:
    """Runs the command line; wrong input ends in one line on stderr and exit status 2."""
    end_by_sigterm()
    app = import_quietly("janus_dola.cli.app")
    app.run(app.app)


if __name__ == "__main__":
    main()
