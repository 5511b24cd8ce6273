"""What a tree of guesses would gain over a chain of as many: codes a pass on the mini model, from passes that were run.

A tree is a chain of C guesses, and K branches of depth D in which another code stands for the first guess. Each branch is
run as a slot of its own, so that what it decides is measured and not modelled. Of all, the one that decides most is gone on
with; what it fed beyond its depth is not looked at, and the guesses there are the chain's.
"""

import json
import statistics
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
import typer
from torch import Tensor

from bench import RESULTS
from bench.report.tables import markdown
from bench.speed.passes import METHODS, captions
from janus_dola import JanusDoLa
from janus_dola.engine.capacity import positions
from janus_dola.engine.decoder import Decoder, visible_length
from janus_dola.engine.plan import plan
from janus_dola.kernels.head import head_scores
from janus_dola.kernels.philox import gumbel_noise
from janus_dola.kernels.types import SampledCodes, SamplingTensors
from janus_dola.models.model import PromptRows
from janus_dola.settings import DrawSettings

FILE = RESULTS / "tree_drafts_mini.json"


class Tree(NamedTuple):
    """Codes fed a pass: the last decided one and the chain behind it, and the branches."""

    chain: int
    branches: int = 0
    depth: int = 0

    @property
    def rows(self) -> int:
        """Codes fed a pass."""
        return self.chain + self.branches * self.depth

    def __str__(self) -> str:
        return f"{self.chain}" + (f" + {self.branches} x {self.depth}" if self.branches else "")


# Of as many rows: the chain, and trees; (4, 4, 3) is the size that "proactive drafting" took (arXiv 2603.18599).
TREES = (
    *(Tree(8), Tree(7, 1, 1), Tree(5, 1, 3), Tree(6, 2, 1), Tree(4, 4, 1)),
    *(Tree(16), Tree(15, 1, 1), Tree(13, 1, 3), Tree(14, 2, 1), Tree(10, 2, 3), Tree(12, 4, 1), Tree(4, 4, 3)),
    *(Tree(32), Tree(31, 1, 1), Tree(29, 1, 3), Tree(28, 4, 1), Tree(20, 4, 3)),
)


class Racing(Decoder):
    """Keeps, of each code fed in the last pass, which codes would have been drawn after it, the likeliest first."""

    order: Tensor

    def _draw(self, hidden_states: Tensor, sampling: SamplingTensors, seeds: Tensor, position: Tensor) -> SampledCodes:
        found = head_scores(hidden_states, self.weights.head, sampling, self.plan.backend)
        race = found.scores / sampling.temperature.unsqueeze(1) + gumbel_noise(seeds, position, found.scores.shape[1])
        self.order = race.argsort(-1, descending=True)[:, :8]
        return SampledCodes(self.order[:, 0], found.layer, found.jsd, found.finite)


class Drawn(NamedTuple):
    """An image drawn with a tree."""

    codes: Tensor
    passes: int
    first_right: int  # passes whose first guess was right
    branch_right: int  # passes in which that of a branch was, and the chain's was not


class Grower:
    """Draws images one by one with a tree of guesses."""

    def __init__(self, pipe: JanusDoLa, settings: DrawSettings, tree: Tree, rows: PromptRows) -> None:
        self.tree, self.rows, self.length = tree, rows, pipe.image_model.raster.length
        self.stride = pipe.image_model.raster.stride
        window = max(tree.chain, tree.depth + 1)
        capacity = positions(pipe.image_model, max(map(len, rows)), window)
        planned = replace(plan(pipe.image_model, settings, launch="eager"), window=window)
        self.decoder = Racing(pipe.image_model, pipe.engine.weights.read(), planned, 1 + tree.branches, capacity)
        self.limits = [tree.chain] + [tree.depth + 1] * tree.branches

    @torch.inference_mode()
    def draw(self, seed: int) -> Drawn:
        """The image of a seed."""
        decoder, slots, count = self.decoder, self.decoder.slots, len(self.limits)
        decoder.admit(range(count), [self.rows] * count, [seed] * count)
        decided, passes, first_right, branch_right = 1, 0, 0, 0
        others: list[int] = []
        while decided < self.length:
            self._branch(decided, others)
            guesses = slots.tokens[:, decided].tolist()
            decoder.step(visible_length(int(slots.prompt_tokens.max()) + decided + self.limits[0]))
            accepted = [min(int(each) - decided, most) for each, most in zip(slots.decided, self.limits, strict=True)]
            best = max(range(count), key=accepted.__getitem__)
            self._go_on_with(best, decided, accepted[best])
            right = int(slots.tokens[0, decided])
            passes += 1
            first_right += guesses[0] == right
            branch_right += guesses[0] != right and right in guesses
            window, row = decoder.plan.window, accepted[best]
            race = best if row <= self.tree.depth else 0
            others = decoder.order[race * window + row].tolist() if row < window else []
            decided += row
        return Drawn(slots.codes(0).tokens, passes, first_right, branch_right)

    def _branch(self, decided: int, others: list[int]) -> None:
        """Other first guesses: those that came next in the race of the pass before, then the neighbours that are known."""
        tokens = self.decoder.slots.tokens
        guess = int(tokens[0, decided])
        around = [decided - back for back in (1, self.stride, self.stride - 1, self.stride + 1)]
        known = [int(tokens[0, place]) for place in around if place >= 0]
        alternatives = [code for code in dict.fromkeys(others + known) if code != guess]
        for slot, code in enumerate(alternatives[: self.tree.branches], 1):
            row = tokens[slot, decided:]
            goes_on = int((row == guess).long().cumprod(0).sum())
            row[:goes_on] = code

    def _go_on_with(self, best: int, decided: int, accepted: int) -> None:
        """All slots are what one of them is up to its depth, and the chain behind that."""
        slots, count = self.decoder.slots, len(self.limits)
        upto = decided + self.tree.depth + 1
        for each in (slots.tokens, slots.layers, slots.jsd):
            each[0, :upto] = each[best, :upto]
            each.copy_(each[0].clone().expand_as(each))
        slots.decided.fill_(decided + accepted)
        rows = self.decoder.keys_values.unflatten(1, (2, count))
        rows.copy_(rows[:, :, best : best + 1].clone().expand_as(rows))


def measured(pipe: JanusDoLa, prompts: list[str], settings: DrawSettings, tree: Tree) -> dict[str, float]:
    """Codes a pass, and how often the first guess is right, or else that of a branch. Codes are those of a plain run.

    Raises:
        AssertionError: they are not.
    """
    drawn = []
    for seed, rows in enumerate(pipe.encode(prompts)):
        drawn.append(Grower(pipe, settings, tree, rows).draw(seed))
    expected = [image.tokens for image in pipe.draw(prompts, range(len(prompts)), settings=settings)]
    assert all(torch.equal(some.codes, codes) for some, codes in zip(drawn, expected, strict=True)), tree
    passes = sum(image.passes for image in drawn)
    return {
        "codes_a_pass": (pipe.image_model.raster.length - 1) * len(drawn) / passes,
        "first_right": sum(image.first_right for image in drawn) / passes,
        "branch_right": sum(image.branch_right for image in drawn) / passes,
        "passes_deviation": statistics.pstdev(image.passes for image in drawn),
    }


def main(images: Annotated[int, typer.Option(help="Captions, one image each.")] = 48) -> None:
    """Measure on the mini model, print a table and write bench/results/tree_drafts_mini.json."""
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    prompts = captions(images)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for tree in TREES:
        found[str(tree)] = {}
        for name, dola in METHODS.items():
            found[str(tree)][name] = measured(pipe, prompts, DrawSettings(dola=dola), tree)
            print(tree, tree.rows, name, found[str(tree)][name], flush=True)
    FILE.write_text(json.dumps({"images": images, "trees": found}, indent=1) + "\n", encoding="utf-8")
    rows = [
        [tree.rows, tree, *(f"{method['codes_a_pass']:.2f}" for method in found[str(tree)].values())] for tree in TREES
    ]
    print(markdown(["codes fed a pass", "tree", *METHODS], rows))


if __name__ == "__main__":
    typer.run(main)
