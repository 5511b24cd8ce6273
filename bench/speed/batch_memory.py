"""Memory of a batch run over many prompts: resident size of the process after every tenth of them.

python -m bench.speed.batch_memory --prompts 2000

The mini model, drawn for 4 of its 64 codes so that it takes minutes; the rest of each picture is one code.
"""

import os
import resource
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch.nn.functional as F
import typer

from janus_dola import JanusDoLa
from janus_dola.batch import Compute, RunSettings, run_batch
from janus_dola.engine.engine import Engine
from janus_dola.models import Raster

_CODES = 4


def short_mini() -> JanusDoLa:
    """Returns the mini model with images of few codes."""
    pipe = JanusDoLa.from_pretrained("mini", device="cpu")
    whole, decode = pipe.image_model.image_tokens, pipe.image_model.to_pixels
    pipe.image_model = replace(
        pipe.image_model, raster=Raster(1, _CODES), to_pixels=lambda codes: decode(F.pad(codes, (0, whole - _CODES)))
    )
    pipe.engine = Engine(pipe.image_model)
    return pipe


def resident_mib() -> float:
    """Returns what the process occupies now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(prompts: int, batch_size: int = 32) -> list[tuple[int, float]]:
    """Returns images written and MiB resident, after every tenth of a run with one image per prompt."""
    pipe = short_mini()
    occupied: list[tuple[int, float]] = []
    drawn, generate = 0, pipe.generate

    def generate_and_look(*arguments, **settings):
        nonlocal drawn
        images = generate(*arguments, **settings)
        drawn += len(images.drawn)
        if drawn // max(1, prompts // 10) > len(occupied):
            occupied.append((drawn, resident_mib()))
        return images

    pipe.generate = generate_and_look  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder, "prompts.txt")
        with lines.open("w") as file:
            file.writelines(f"a large red circle on white, number {number}\n" for number in range(prompts))
        summary = run_batch(
            lines, Path(folder, "out"), RunSettings(parallel_size=1), Compute(batch_size=batch_size), pipe=pipe
        )
    assert summary.drawn == prompts, summary
    return occupied


def main(prompts: Annotated[int, typer.Option(help="How many prompts.")] = 2000) -> None:
    """Print the memory of a run as it goes on."""
    for images, mib in measure(prompts):
        typer.echo(f"{images:6} images  {mib:8.1f} MiB")
    typer.echo(f"at most         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:8.1f} MiB")


if __name__ == "__main__":
    typer.run(main)
