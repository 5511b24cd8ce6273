"""`python -m janus_dola.run_batch_prompts`: the batch command under its original name and flags."""

from janus_dola.cli.startup import end_by_sigterm, import_quietly


def main() -> None:
    """Runs the command line with `batch` alone."""
    end_by_sigterm()
    app = import_quietly("janus_dola.cli.app")
    app.run(app.batch_alone())


if __name__ == "__main__":
    main()
