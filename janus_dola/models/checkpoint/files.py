"""The weights of a checkpoint: which files hold them, and whether they are those of the model, each and all."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from janus_dola.models.reading import UnreadableModelError, check_content, read_json, reading

_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there, as transformers chooses
_NAMED = 6  # tensors, in a message
# In published checkpoints, and of no use: buffers that are computed, statistics of training DeepSeek's image tokenizer,
# and a pooling layer that Janus never calls.
_UNUSED = re.compile(
    r"rotary_emb\.inv_freq$|\.position_ids$|(gen_vision_model|vqmodel)\.quantize\.codebook_used$"
    r"|^(model\.)?vision_model\.(vision_tower\.)?attn_pool\."
)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, but for those that no Janus uses.

    Files are mapped into memory: a tensor is read when it is touched, so that looking at shapes costs nothing. Of several
    files only those of the index are read. No code in them runs.

    Raises:
        FileNotFoundError: there are no weights.
        UnreadableModelError: a file is missing, damaged or no file of weights, or disagrees with the index.
    """
    weights: dict[str, Tensor] = {}
    for file, wanted in _files(folder).items():
        found = _read(file)
        if wanted is not None and found.keys() != wanted:
            named = _named(sorted(found.keys() ^ wanted))
            raise UnreadableModelError(f"{file} must hold what the index of {folder} says; they differ in {named}")
        weights |= found
    return {name: weight for name, weight in weights.items() if not _UNUSED.search(name)}


def holds_weights(folder: Path) -> bool:
    """Whether a folder has weights, or an index of them."""
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in _WHOLE_FILES)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Each file with weights, and the names it must hold; None where there is no index."""
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
        raise UnreadableModelError(f"{index} must hold the object weight_map, got {_shown(places)}")
    files: dict[Path, set[str]] = {}
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place:
            raise UnreadableModelError(f"{index} must name files of its folder, got {_shown(place)} for {name!r}")
        files.setdefault(index.parent / place, set()).add(name)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UnreadableModelError(f"{index} names files that are not there: {_named(sorted(missing))}")
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


def check_weights(folder: Path, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Compares weights with those a model has.

    Args:
        folder: for the message.
        model: its parameters may be on the device "meta"; of those that share one, one must be there.
        weights: under the model's names.
    Raises:
        UnreadableModelError: some are missing, too many or of another shape; it names them.
    """
    names: dict[int, set[str]] = {}  # of each tensor
    shapes = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        names.setdefault(id(weight), set()).add(name)
        shapes[name] = weight.shape
    report(
        folder,
        missing=[min(group) for group in names.values() if not group & weights.keys()],
        unexpected=weights.keys() - shapes.keys(),
        mismatched=[
            f"{name} {list(weights[name].shape)} in place of {list(shape)}"
            for name, shape in shapes.items()
            if name in weights and weights[name].shape != shape
        ],
        not_numbers=[name for name, weight in weights.items() if not weight.is_floating_point()],
    )


def report(folder: Path, **problems: Iterable[object]) -> None:
    """Raises UnreadableModelError, with the names, where there is a problem of any kind."""
    of_use = {
        kind: sorted(name for name in map(str, names) if not _UNUSED.search(name)) for kind, names in problems.items()
    }
    found = [f"{kind.replace('_', ' ')}: {_named(names)}" for kind, names in of_use.items() if names]
    if found:
        raise UnreadableModelError(
            f"{folder} does not hold the weights of the Janus in its config.json; {'; '.join(found)}"
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shown(value: object) -> str:
    return repr(value)[:80]
