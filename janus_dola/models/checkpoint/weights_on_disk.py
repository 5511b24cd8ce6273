"""Reads a checkpoint's weights, and checks that they are the model's, each and all."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from janus_dola.arguments import shown
from janus_dola.models.checkpoint.reading import UnreadableModelError, check_content, read_json, reading
from janus_dola.models.model import Family

_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there, as transformers chooses
_NAMED = 6  # tensors, in a message


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors in a checkpoint by name.

    Files are mapped into memory: a tensor is read when it is touched, so that looking at shapes costs nothing. Where there
    is an index, only its files are read. No code in them runs.

    Raises:
        FileNotFoundError: there are no weights.
        UnreadableModelError: a file is missing, damaged or holds no weights, or disagrees with the index.
    """
    weights: dict[str, Tensor] = {}
    for file, names in _files(folder).items():
        tensors = _read(file)
        if names is not None and tensors.keys() != names:
            different = _shortened(sorted(tensors.keys() ^ names))
            raise UnreadableModelError(f"{file} must hold what the index of {folder} says; they differ in {different}")
        weights |= tensors
    return weights


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Returns each file with weights, and the names it must hold; None where there is no index."""
    for name in _WHOLE_FILES:
        if (folder / name).is_file():
            return {folder / name: None}
        index = folder / f"{name}.index.json"
        if index.is_file():
            return dict(_indexed(index))
    raise FileNotFoundError(f"{folder} holds neither {' nor '.join(_WHOLE_FILES)}, nor an index of such files")


def _indexed(index: Path) -> dict[Path, set[str]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UnreadableModelError(f"{index} must hold the object weight_map, got {shown(places)}")
    files: dict[Path, set[str]] = {}
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place:
            raise UnreadableModelError(f"{index} must name files of its folder, got {shown(place)} for {name!r}")
        files.setdefault(index.parent / place, set()).add(name)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UnreadableModelError(f"{index} names files that are not there: {_shortened(sorted(missing))}")
    return files


def _read(file: Path) -> dict[str, Tensor]:
    check_content(file)
    content: Any
    if file.suffix == ".safetensors":
        with reading(file, "is no whole safetensors file"):
            content = load_file(file)
    else:
        with reading(file, "is no file of tensors that torch.load(..., weights_only=True) reads"):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, Mapping) or not all(isinstance(weight, Tensor) for weight in content.values()):
        raise UnreadableModelError(f"{file} must hold a dict of tensors")
    return dict(content)


def check_weights(folder: Path, family: Family, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises UnreadableModelError where weights, under a model's names, are missing, too many or have another shape.

    The model may be on the device "meta". If several of its parameters share one tensor, one must be there.
    """
    names: dict[int, set[str]] = {}  # by tensor
    expected = model.state_dict(keep_vars=True)
    for name, weight in expected.items():
        names.setdefault(id(weight), set()).add(name)
    both = [(name, weight, weights[name]) for name, weight in expected.items() if name in weights]
    report(
        folder,
        family,
        missing=[min(group) for group in names.values() if not group & weights.keys()],
        unexpected=weights.keys() - expected.keys(),
        mismatched=[
            f"{name} {list(weight.shape)} in place of {list(own.shape)}"
            for name, own, weight in both
            if weight.shape != own.shape
        ],
        not_numbers=[name for name, own, weight in both if weight.is_floating_point() != own.is_floating_point()],
    )


def report(folder: Path, family: Family, **problems: Iterable[object]) -> None:
    """Raises UnreadableModelError, with the names, where there is any problem."""
    kinds = []
    for kind, tensors in problems.items():
        names = sorted(name for name in map(str, tensors) if not family.unused.search(name))
        if names:
            kinds.append(f"{kind.replace('_', ' ')}: {_shortened(names)}")
    if kinds:
        raise UnreadableModelError(
            f"{folder} does not hold the weights of the {family.name} in its config.json; {'; '.join(kinds)}"
        )


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
