"""Draws prompts in processes that are killed, then once more to the end; run by test_batch_killed.py.

One import and one model for all of them: each run is a fork of this process, in which torch has started no threads yet.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from janus_dola import JanusDoLa
from janus_dola.batch import Compute, RunSettings, batch_run, folder, run_batch


def run(pipe: JanusDoLa, prompts: Path, outdir: Path, sabotage=None) -> int:
    """Starts a run and returns the id of its process."""
    child = os.fork()
    if child:
        return child
    try:
        if sabotage is not None:
            sabotage()
        run_batch(prompts, outdir, RunSettings(parallel_size=2), Compute(batch_size=4), pipe=pipe)
        os._exit(0)
    finally:
        os._exit(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_inside_an_image(countdown: int):
    """Half of a file's bytes are on disk when the process dies."""

    def write_whole(path, content, partial):
        nonlocal countdown
        countdown -= path.suffix == ".jpg"
        if countdown > 0:
            return whole(path, content, partial=partial)
        opened = Path.open
        Path.open = lambda self, mode: opened(self, mode, buffering=0)
        return whole(path, halves(content), partial=partial)

    def halves(content):
        yield content[: len(content) // 2]
        assert any(path.stat().st_size for path in Path(outdir_of_run).joinpath(folder.PARTIAL).iterdir())
        die()

    def sabotage():
        batch_run.write_whole = write_whole

    whole = batch_run.write_whole
    return sabotage


def die_inside_the_manifest(countdown: int):
    """A part of the lines of a batch is on disk, the last of them torn."""

    def append(self, entries):
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            out, lines = self._files or self._opened()
            self._files = (Torn(out), lines)
        append_whole(self, entries)

    class Torn:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            self.file.write(content[: len(content) * 3 // 8])  # of four lines one and a half
            die()

    def sabotage():
        batch_run.Manifest.append = append

    append_whole = batch_run.Manifest.append
    return sabotage


def die_between_manifest_and_files(countdown: int):
    """The lines of a batch are there, its images are not."""

    def append(self, entries):
        nonlocal countdown
        countdown -= 1
        append_whole(self, entries)
        if countdown == 0:
            die()

    def sabotage():
        batch_run.Manifest.append = append

    append_whole = batch_run.Manifest.append
    return sabotage


def moments(chance: random.Random, count: int) -> list:
    """Where processes die, at least one of each kind.

    They let fewer images be drawn than the 7 a moment that there are, so that none comes after the end.
    """
    kinds = [
        lambda: (die_inside_an_image(chance.randint(1, 4)), None),
        lambda: (die_inside_the_manifest(chance.randint(1, 2)), None),
        lambda: (None, (chance.randint(1, 2), chance.uniform(0, 0.5))),
        lambda: (die_between_manifest_and_files(chance.randint(1, 2)), None),
        lambda: (None, (chance.randint(0, 2), chance.uniform(0, 0.5))),
    ]
    result = [kinds[i % len(kinds)]() for i in range(count)]
    chance.shuffle(result)
    return result


def killed_from_outside(child: int, outdir: Path, images: int, delay: float) -> None:
    """Waits until the child has drawn some images, then a little, then kills it."""
    before = len(list(outdir.glob("*.jpg")))
    while len(list(outdir.glob("*.jpg"))) < before + images:
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)


def is_torn(file: Path) -> bool:
    """Whether it ends within a line; a run that was killed at its very beginning has none."""
    return file.exists() and not (b"\n" + file.read_bytes()).endswith(b"\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    prompts, undisturbed, killed = map(Path, sys.argv[1:4])
    chance = random.Random(int(sys.argv[4]))
    outdir_of_run = killed
    pipe = JanusDoLa.from_pretrained("mini", device="cpu")
    assert os.waitpid(run(pipe, prompts, undisturbed), 0)[1] == 0
    report = []
    for sabotage, outside in moments(chance, int(sys.argv[5])):
        child = run(pipe, prompts, killed, sabotage)
        if outside is not None:
            killed_from_outside(child, killed, *outside)
        status = os.waitpid(child, 0)[1]
        report.append(
            {
                "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
                "images": len(list(killed.glob("*.jpg"))),
                "partial": len(list(killed.joinpath(folder.PARTIAL).glob("*"))),
                "torn": is_torn(killed / "manifest.jsonl"),
            }
        )
    last = os.waitpid(run(pipe, prompts, killed), 0)[1]
    print(json.dumps({"moments": report, "last": last}))
