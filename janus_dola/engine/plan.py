"""What a user's settings mean for a model of so many blocks."""

from dataclasses import dataclass
from typing import Literal

from janus_dola.config import DoLaConfig
from janus_dola.kernels.types import Decoding

Sampler = Literal["gumbel", "multinomial"]
SAMPLERS = ("gumbel", "multinomial")


@dataclass(frozen=True)
class Plan:
    """Which layers are read at each token, and how a token is chosen from them."""

    layers: tuple[int, ...]  # tapped, in ascending order; the final layer N comes after them
    decoding: Decoding


def plan(dola: DoLaConfig | None, cfg_weight: float, temperature: float, num_layers: int) -> Plan:
    """Turns the settings of a user into a plan for a model of `num_layers` blocks. `dola=None` is the plain baseline.

    Raises:
        ValueError: a value is out of range, or no candidate layer exists in the model.
    """
    layers = tuple(dola.layers_to_read(num_layers)) if dola is not None else ()
    alpha = dola.alpha if dola is not None else 0.0
    premature = None if dola is not None and dola.premature_layer is None else 0
    return Plan(layers, Decoding(cfg_weight, temperature, alpha, premature))
