"""Lenses in a file: read for the layers that a pass reads, and checked to be of the very weights that they are used with."""

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from janus_dola.arguments import shown
from janus_dola.kernels.block_torch import Matrix
from janus_dola.kernels.lens_map import LayerLens, Lens
from janus_dola.models.checkpoint.reading import check_content, reading
from janus_dola.models.model import ImageModel
from janus_dola.models.weights import fingerprint

LENS_FILE = "lens.safetensors"  # beside a model's weights
_STORED = torch.bfloat16
_PARTS = ("down", "up", "bias")
_ABOUT = "lens"
_LOADED_IN = (torch.float32, torch.bfloat16, torch.float16)  # dtypes that the same weights may be rounded to


def lens_bytes(maps: Mapping[int, Sequence[Tensor]], image_model: ImageModel, about: Mapping[str, Any]) -> bytes:
    """Returns a file's content.

    Args:
        maps: by layer, down [K, D], up [D, K] and bias [D].
        image_model: the model that they were trained for.
        about: how they were trained, for people; JSON holds it.
    """
    tensors = {
        f"{layer}.{name}": part.to(_STORED).contiguous()
        for layer, parts in maps.items()
        for name, part in zip(_PARTS, parts, strict=True)
    }
    weights = [fingerprint(image_model, dtype) for dtype in _LOADED_IN]
    known = {**about, "weights": list(dict.fromkeys(weights))}
    return save(tensors, {_ABOUT: json.dumps(known)})  # in one piece, since safetensors writes pieces in any order


def lens_path(image_model: ImageModel, lens: str) -> Path:
    """Returns the file that a setting `lens` names, "auto" or a path; none there is a ValueError."""
    if lens != "auto":
        path, hint = Path(lens), ""
    elif image_model.folder is None:
        raise ValueError(
            f"lens 'auto' needs a model that was loaded from a folder with {LENS_FILE}; name the file instead"
        )
    else:
        path, hint = image_model.folder / LENS_FILE, "; `janus-dola lens` trains one"
    if not path.is_file():
        raise ValueError(f"lens must be a file that is there, got {lens!r}: no {path}{hint}")
    return path


def read_lens(image_model: ImageModel, lens: str, layers: Sequence[int]) -> Lens:
    """Returns a lens on the model's device, the same object as long as file and model are the same.

    Args:
        image_model: the model to be read through it; one on the device "meta" is not compared with the file.
        lens: "auto", for the file beside the model's weights, or a path.
        layers: that it is needed for.
    Raises:
        ValueError: there is no such file; it is damaged, or was trained for another model, for weights as they were before
            they changed, or for other layers.
    """
    path = lens_path(image_model, lens)
    status = path.stat()
    stamp = status.st_mtime_ns, status.st_size, status.st_ino
    with reading(path, "is no lens"):
        weights, loaded = _load(path, stamp, image_model.device, image_model.dtype)
    sizes = {each.up.weight.shape[0] for each in loaded.layers.values()}
    if sizes != {image_model.head.hidden_size}:
        own_size = image_model.head.hidden_size
        raise ValueError(f"lens {path} is for a hidden size of {shown(sorted(sizes))[1:-1]}, not {own_size}")
    if missing := [layer for layer in layers if layer not in loaded.layers]:
        have, lacks = (", ".join(map(str, each)) for each in (loaded.layers, missing))
        raise ValueError(f"lens {path} is for the layers {have}, not for {lacks}")
    if image_model.device.type != "meta" and (own := fingerprint(image_model)) not in weights:
        raise ValueError(
            f"lens {path} belongs to the weights {' or '.join(weights)}, got {own}: of another model, trained since, or in "
            "8 bits"
        )
    return loaded


@lru_cache(maxsize=8)
def _load(path: Path, stamp: object, device: torch.device, dtype: torch.dtype) -> tuple[list[str], Lens]:
    """Returns the `fingerprint`s that a lens's weights may have, and the lens; `stamp` tells versions of the file apart."""
    check_content(path)
    with safe_open(path, "pt") as file:
        weights = list(map(str, json.loads(file.metadata()[_ABOUT])["weights"]))
        # Copied: what is mapped from a file ends with it.
        tensors = {name: file.get_tensor(name).to(device, dtype, copy=True) for name in file.keys()}  # noqa: SIM118
    layers = sorted({int(name.partition(".")[0]) for name in tensors})
    if tensors.keys() != {f"{layer}.{part}" for layer in layers for part in _PARTS}:
        raise ValueError(f"its tensors are {shown(sorted(tensors))}")
    if not all(tensor.isfinite().all() for tensor in tensors.values() if not tensor.is_meta):
        raise ValueError("a number in it is not finite")
    maps = {layer: _layer_lens(*(tensors[f"{layer}.{part}"] for part in _PARTS)) for layer in layers}
    return weights, Lens(maps, f"{zlib.crc32(path.read_bytes()):08x}")


def _layer_lens(down: Tensor, up: Tensor, bias: Tensor) -> LayerLens:
    if not (down.mT.shape == up.shape and bias.shape == up.shape[:1]):
        raise ValueError(f"its tensors have the shapes {list(down.shape)}, {list(up.shape)}, {list(bias.shape)}")
    return LayerLens(Matrix(down), Matrix(up, bias))
