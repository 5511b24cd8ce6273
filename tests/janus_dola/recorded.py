"""What the engine drew when it was first finished, one code a pass and transformers' own blocks: nothing may change it.

`python -m tests.janus_dola.recorded` records it anew, which only a change of the mini model calls for.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Recorded:
    """Of one setting. P prompts, T image tokens."""

    tokens: Tensor  # [P, T] int64
    premature_layers: Tensor  # [P, T] int64
    jsd: Tensor  # [P, T] float32


def recorded() -> dict[str, Recorded]:
    """Of each of `SETTINGS`."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(FILE).items()}
    stacked = arrays["tokens"].long(), arrays["premature_layers"].long(), arrays["jsd"]
    return {name: Recorded(*(each[i] for each in stacked)) for i, name in enumerate(SETTINGS)}


def _record() -> None:
    mini = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    drawn = [mini.generate(PROMPTS, seed=SEED, **settings) for settings in SETTINGS.values()]
    np.savez_compressed(
        FILE,
        tokens=torch.stack([found.tokens[:, 0] for found in drawn]).short().numpy(),
        premature_layers=torch.stack([found.premature_layers[:, 0] for found in drawn]).byte().numpy(),
        jsd=torch.stack([found.jsd[:, 0] for found in drawn]).numpy(),
    )


if __name__ == "__main__":
    _record()
