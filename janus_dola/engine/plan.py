"""What a user's settings mean for a model of so many blocks on its device."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from janus_dola.arguments import LaunchName
from janus_dola.engine.devices import has_graphs
from janus_dola.kernels.head import resolve_backend
from janus_dola.kernels.types import SamplingParams
from janus_dola.models.model import ImageModel
from janus_dola.settings import DrawSettings

Sampler = Literal["gumbel", "multinomial"]
SAMPLERS, LAUNCHES = get_args(Sampler), get_args(LaunchName)


@dataclass(frozen=True)
class Plan:
    """Which layers are read at each token, how a pass is run, and how a token is chosen where an image does not say."""

    layers: tuple[int, ...]  # tapped, in ascending order; the final layer N comes after them
    params: SamplingParams = field(compare=False)  # of other images the same passes draw
    sampler: Sampler
    backend: str  # of the head stage: "reference", "torch" or "triton"; and of the blocks, where it is "triton"
    launch: str  # "graph", "compile" or "eager"
    window: int = 1  # W, codes fed a pass for each image
    kind: Hashable = field(init=False)  # of the images' params

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.params.kind)

    @property
    def simplest(self) -> "Plan":
        """The same images by what runs everywhere."""
        return replace(self, launch="eager", backend="torch")


def plan(
    image_model: ImageModel,
    settings: DrawSettings,
    sampler: Sampler = "gumbel",
    backend: str = "auto",
    launch: str = "auto",
) -> Plan:
    """Turns the settings of a user into a plan for a model.

    Raises:
        ValueError: a value is out of range, no candidate layer exists in the model, or its device lacks what is asked for.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {list(SAMPLERS)}, got {sampler!r}")
    layers = () if settings.dola is None else tuple(settings.dola.layers_to_read(image_model.num_layers))
    return Plan(
        layers,
        settings.sampling_params(layers),
        sampler,
        resolve_backend(backend, image_model.device, image_model.dtype),
        resolve_launch(launch, image_model.device),
    )


def resolve_launch(launch: str, device: torch.device) -> str:
    """The way to run a pass that a name stands for: "auto" is "graph" on a CUDA device, and "eager" elsewhere.

    Raises:
        ValueError: there is no such way, or graphs do not exist on this device.
    """
    if launch not in LAUNCHES:
        raise ValueError(f"launch must be one of {list(LAUNCHES)}, got {launch!r}")
    if launch == "auto":
        return "graph" if has_graphs(device) else "eager"
    if launch == "graph" and not has_graphs(device):
        raise ValueError(
            f"launch 'graph' needs a CUDA device, got {device.type}; 'auto' takes the fastest that runs here"
        )
    return launch
