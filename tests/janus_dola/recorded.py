"""Codes that an engine drew long ago: whatever is faster, and whatever rounds otherwise, draws the same.

`python -m tests.janus_dola.recorded` records them anew, which a change of the mini model calls for, or of a formula.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from janus_dola import DoLaConfig, JanusDoLa

FILE = Path(__file__).with_name("recorded.npz")
PROMPTS = [  # of different lengths
    "a large red circle on white",
    "a small blue square on grey",
    "a green cross",
    "x",
    "a small purple cross on a black background, please, and nothing else",
]
SEED = 11
DOLA = {
    "baseline": None,
    "alpha 0": DoLaConfig(alpha=0.0),
    "alpha 0.1": DoLaConfig(alpha=0.1),
    "alpha 0.5": DoLaConfig(alpha=0.5),
    "static": DoLaConfig(alpha=0.1, premature_layer=4),
    "final": DoLaConfig(alpha=0.5, premature_layer="final"),
}
SETTINGS = {
    f"{name}, T {temperature}, cfg {weight}": {"dola": dola, "temperature": temperature, "cfg_weight": weight}
    for (name, dola), temperature, weight in product(DOLA.items(), (0.0, 0.5, 1.0), (1.0, 5.0))
}
FINITE = DoLaConfig(alpha=0.02, premature_layer=2, beta=1.0)
SETTINGS["finite, T 1.0, cfg 5.0"] = {"dola": FINITE, "temperature": 1.0, "cfg_weight": 5.0}
SETTINGS |= {
    f"lens, T {temperature}, cfg {weight}": {
        "dola": replace(FINITE, lens="auto"), "temperature": temperature, "cfg_weight": weight
    }
    for temperature, weight in ((1.0, 1.0), (0.5, 5.0))
}  # fmt: skip


MULTINOMIAL = {"dola": None, "sampler": "multinomial", "parallel_size": 2}


@dataclass(frozen=True)
class Recorded:
    """Images of one setting, with the seeds SEED, SEED + 1, ... P prompts, T image tokens."""

    tokens: Tensor  # [P, T] int64
    premature_layers: Tensor  # [P, T] int64
    jsd: Tensor  # [P, T] float32


def recorded() -> dict[str, Recorded]:
    """Returns the images of each of `SETTINGS`."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(FILE).items()}
    stacked = arrays["tokens"].long(), arrays["premature_layers"].long(), arrays["jsd"]
    return {name: Recorded(*(each[i] for each in stacked)) for i, name in enumerate(SETTINGS)}


def recorded_multinomial() -> Tensor:
    """Returns the codes [3, 2, T] of the first three prompts, drawn from torch's generator (`MULTINOMIAL`)."""
    return torch.from_numpy(np.load(FILE)["multinomial"]).long()


def assert_as_recorded(tokens: Tensor, layers: Tensor, jsd: Tensor, expected: Recorded) -> None:
    """Checks codes and layers of images, [P, T] each, against the recorded ones, and JSD to 1e-4."""
    assert torch.equal(tokens, expected.tokens)
    assert torch.equal(layers, expected.premature_layers)
    assert (jsd - expected.jsd).abs().max() < 1e-4


def _record() -> None:
    mini = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    outputs = [mini.generate(PROMPTS, seed=SEED, **settings) for settings in SETTINGS.values()]
    np.savez_compressed(
        FILE,
        tokens=torch.stack([output.tokens[:, 0] for output in outputs]).short().numpy(),
        premature_layers=torch.stack([output.premature_layers[:, 0] for output in outputs]).byte().numpy(),
        jsd=torch.stack([output.jsd[:, 0] for output in outputs]).numpy(),
        multinomial=mini.generate(PROMPTS[:3], seed=SEED, **MULTINOMIAL).tokens.short().numpy(),
    )


if __name__ == "__main__":
    _record()
