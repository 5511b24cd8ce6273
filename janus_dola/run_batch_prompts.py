"""`python -m janus_dola.run_batch_prompts`: the batch command under its original name and flags."""

import typer

from janus_dola.cli import app, batch, run

runner = typer.Typer(pretty_exceptions_enable=False, add_completion=False, context_settings=app.info.context_settings)
runner.command()(batch)

if __name__ == "__main__":
    run(runner)
