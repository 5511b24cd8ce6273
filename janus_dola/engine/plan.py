"""What a user's settings mean for a model of so many blocks on its device."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from janus_dola.choices import EngineName
from janus_dola.devices import has_graphs
from janus_dola.kernels.early_exit import resolve_backend
from janus_dola.kernels.types import Decoding
from janus_dola.models.parts import JanusParts
from janus_dola.settings import DrawSettings

Sampler = Literal["gumbel", "multinomial"]
SAMPLERS, ENGINES = get_args(Sampler), get_args(EngineName)


@dataclass(frozen=True)
class Plan:
    """Which layers are read at each token, how a pass is run, and how a token is chosen where an image does not say."""

    layers: tuple[int, ...]  # tapped, in ascending order; the final layer N comes after them
    decoding: Decoding = field(compare=False)  # of other images the same passes draw
    sampler: Sampler
    backend: str  # of the early-exit stage: "reference", "torch" or "triton"; and of the blocks, where it is "triton"
    engine: str  # "graph", "compile" or "eager"
    window: int = 1  # W, codes fed a pass for each image
    kind: Hashable = field(init=False)  # of the images' decodings

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.decoding.kind)

    @property
    def simplest(self) -> "Plan":
        """The same images by what runs everywhere."""
        return replace(self, engine="eager", backend="torch")


def plan(
    parts: JanusParts,
    settings: DrawSettings,
    sampler: Sampler = "gumbel",
    backend: str = "auto",
    engine: str = "auto",
) -> Plan:
    """Turns the settings of a user into a plan for a model.

    Raises:
        ValueError: a value is out of range, no candidate layer exists in the model, or its device lacks what is asked for.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {list(SAMPLERS)}, got {sampler!r}")
    layers = () if settings.dola is None else tuple(settings.dola.layers_to_read(parts.num_layers))
    return Plan(
        layers,
        settings.decoding(layers),
        sampler,
        resolve_backend(backend, parts.device, parts.dtype),
        resolve_engine(engine, parts.device),
    )


def resolve_engine(engine: str, device: torch.device) -> str:
    """The engine that a name stands for: "auto" is "graph" on a CUDA device, and "eager" elsewhere.

    Raises:
        ValueError: there is no such engine, or graphs do not exist on this device.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {list(ENGINES)}, got {engine!r}")
    if engine == "auto":
        return "graph" if has_graphs(device) else "eager"
    if engine == "graph" and not has_graphs(device):
        raise ValueError(
            f"engine 'graph' needs a CUDA device, got {device.type}; 'auto' takes the fastest that runs here"
        )
    return engine
