"""A user's settings turned into what a pass is compiled for, on the model's device."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from janus_dola.arguments import LaunchName
from janus_dola.engine.devices import has_graphs
from janus_dola.kernels.head import resolve_backend
from janus_dola.kernels.lens_map import Lens
from janus_dola.kernels.params import Kind
from janus_dola.models.lens_file import read_lens
from janus_dola.models.model import ImageModel
from janus_dola.models.weights import fingerprint
from janus_dola.settings import DrawSettings

Sampler = Literal["gumbel", "multinomial"]


@dataclass(frozen=True)
class Plan:
    """What a pass is compiled for. Images of equal plans share passes, whatever else their settings say."""

    layers: tuple[int, ...]  # read at each token, in ascending order; the final layer N comes after them
    kind: Kind  # of the images' `SamplingParams`
    sampler: Sampler
    backend: str  # runs the head stage: "reference", "torch" or "triton"; and the blocks, if it is "triton"
    launch: str  # "graph", "compile" or "eager"
    window: int = 1  # W, codes fed per image and pass
    lens: Lens | None = None  # that early layers are read through

    @property
    def rows(self) -> int:
        """Returns how many rows an image has."""
        return self.kind.rows

    @property
    def simplest(self) -> "Plan":
        """Returns a plan for the same images that runs everywhere."""
        return replace(self, launch="eager", backend="torch")


def make_plan(
    image_model: ImageModel,
    settings: DrawSettings,
    sampler: Sampler = "gumbel",
    backend: str = "auto",
    launch: str = "auto",
) -> Plan:
    """Turns a user's settings into a plan; what the model or its device does not have is a ValueError."""
    if sampler not in get_args(Sampler):
        raise ValueError(f"sampler must be one of {list(get_args(Sampler))}, got {sampler!r}")
    layers, device = settings.layers_to_read(image_model.num_layers), image_model.device
    kind, backend = settings.sampling_params(layers).kind, resolve_backend(backend, device, image_model.dtype)
    return Plan(layers, kind, sampler, backend, resolve_launch(launch, device), lens=lens_of(image_model, settings))


def lens_of(image_model: ImageModel, settings: DrawSettings) -> Lens | None:
    """Returns the lens that a model's early layers are read through with these settings; errors are those of `read_lens`."""
    if settings.lens is None or not (layers := settings.layers_to_read(image_model.num_layers)):
        return None
    return read_lens(image_model, settings.lens, layers)


def weights_named(image_model: ImageModel, settings: DrawSettings) -> str:
    """Returns what tells apart the weights that images are drawn with: the model's `fingerprint`, and the lens's digest."""
    lens = lens_of(image_model, settings)
    return fingerprint(image_model) if lens is None else f"{fingerprint(image_model)} {lens.digest}"


def resolve_launch(launch: str, device: torch.device) -> str:
    """Resolves "auto": "graph" on a CUDA device, "eager" elsewhere. What the device does not have is a ValueError."""
    if launch not in get_args(LaunchName):
        raise ValueError(f"launch must be one of {list(get_args(LaunchName))}, got {launch!r}")
    if launch == "auto":
        return "graph" if has_graphs(device) else "eager"
    if launch == "graph" and not has_graphs(device):
        raise ValueError(
            f"launch 'graph' needs a CUDA device, got {device.type}; 'auto' takes the fastest that runs here"
        )
    return launch
