"""Loads an image model and its tokenizer by name, whatever its family: "mini", a folder, or a repository."""

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from janus_dola.models.checkpoint.hub import resolve
from janus_dola.models.checkpoint.reading import UnreadableModelError, check_content, read_json, reading
from janus_dola.models.checkpoint.weights_on_disk import check_weights, read_weights, report
from janus_dola.models.contexts import undisturbed
from janus_dola.models.families import family_of_checkpoint
from janus_dola.models.model import Family
from janus_dola.models.storage import device_and_dtype

_MOST_LAYERS = 1000  # in a model whose weights are not there to be counted
_MOST_POSITIONS = 2**18  # published Januses have 2**14; their table of rotations takes 256 MB then
_DEPTHS = ("num_hidden_layers", "depth", "num_res_blocks")  # in a config: how often a module is repeated
_OPTIONAL = "generation_config processor_config special_tokens_map added_tokens tokenizer_config tokenizer"  # .json


def load(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Loads an image model, in transformers' class, and its tokenizer.

    Args:
        model: "mini", a folder or a repository, with a checkpoint of any family in `janus_dola.models.families`.
        device: None is a GPU where there is one.
        dtype: None is float32 on a CPU and bfloat16 elsewhere, float16 on a GPU without bfloat16.
        revision: a branch, tag or commit in the repository.
    Raises:
        FileNotFoundError: no checkpoint is there.
        UnreadableModelError (a ValueError): a file is damaged, or the weights are not the model's, each and all.
        ValueError: the checkpoint belongs to no such family, the dtype is unknown, or the device is not there.
    """
    device, dtype = device_and_dtype(device, dtype)
    checkpoint = Checkpoint.open(resolve(model, revision))
    tokenizer = checkpoint.tokenizer()
    with undisturbed():
        loaded = checkpoint.model(dtype, tokenizer)
        return loaded.to(device).eval(), tokenizer


def load_skeleton(model: str | Path, revision: str | None = None) -> PreTrainedModel:
    """Builds a model on the device "meta", without downloading or reading weights; raises what `load` does."""
    return Checkpoint.open(resolve(model, revision, weights=False)).skeleton()


def paints(model: str | Path, revision: str | None = None) -> bool:
    """Tells by a model's config.json whether it makes pictures of its codes itself; true, too, where none can be read."""
    try:
        return Checkpoint.open(resolve(model, revision, weights=False)).family.paints
    except (OSError, ValueError):  # loading the model says it
        return True


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model whose family is known."""

    folder: Path
    family: Family
    description: dict[str, Any]  # its config.json

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Reads the files that describe a model; a damaged one, or a model of no family here, is a ValueError."""
        for path in (folder / f"{name}.json" for name in _OPTIONAL.split()):
            if path.exists():
                read_json(path)
        if (folder / "chat_template.jinja").exists():
            check_content(folder / "chat_template.jinja")
        description = read_json(folder / "config.json")
        return cls(folder, family_of_checkpoint(description.get("model_type")), description)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Loads the tokenizer, exactly as `tokenizer.json` describes it, with the chat template of its processor."""
        folder, beside = self.folder, self.folder.parent / "processor"  # where diffusers' repositories keep it
        if not (folder / "tokenizer.json").is_file() and (beside / "tokenizer.json").is_file():
            folder = beside
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(
                f"model folder {folder} has no tokenizer.json: copy tokenizer.json, tokenizer_config.json and "
                "special_tokens_map.json from the checkpoint that the model was made from"
            )
        with reading(folder / "tokenizer.json", "cannot be loaded with the files beside it"):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            if not tokenizer("x", add_special_tokens=False)["input_ids"]:
                raise ValueError("it makes no tokens of a word")
        template = folder / "chat_template.json"  # where processors of transformers 4 kept it
        if tokenizer.chat_template is None and template.is_file():
            tokenizer.chat_template = read_json(template).get("chat_template")
        self.family.prepare_tokenizer(tokenizer)
        return tokenizer

    def skeleton(self) -> PreTrainedModel:
        """Builds the model on the device "meta"."""
        model = self._skeleton(self._config(), _MOST_LAYERS)
        model.name_or_path = str(self.folder)
        return model

    def model(self, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        """Loads the weights, on the CPU. They must be the model's, each and all, and it must embed all tokens."""
        family, folder = self.family, self.folder
        stored, config = read_weights(folder), self._config()
        with reading(folder, "cannot be loaded"):
            weights = family.rename({name: stored[name] for name in stored if not family.unused.search(name)})
        if "quantization_config" not in self.description:  # which stores other tensors than the model's
            check_weights(folder, family, self._skeleton(config, len(weights)), weights)
        # transformers reads its own format itself, and more than the weights: settings of generation, for one.
        source, tensors = (folder, None) if family.read_config is None else (None, weights)
        with reading(folder, "cannot be loaded"):
            model, loading = family.model_class.from_pretrained(
                source, config=config, state_dict=tensors, dtype=dtype,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        report(folder, family, **loading)
        model.name_or_path = str(folder)
        rows, highest = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values(), default=0)
        if highest >= rows:
            raise UnreadableModelError(
                f"{folder} must hold model and tokenizer of one {family.name}: {rows} embeddings, token {highest}"
            )
        family.prepare_model(model, tokenizer)
        return model

    def _config(self) -> PretrainedConfig:
        with self._describing():
            if self.family.read_config is not None:
                return self.family.read_config(self.folder, self.description)
            return self.family.model_class.config_class.from_dict(self.description)

    def _skeleton(self, config: PretrainedConfig, most_layers: int) -> PreTrainedModel:
        with self._describing(), undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of sizes of zero
            for part in (getattr(config, name) for name in config.sub_configs):
                depths = {name: getattr(part, name, 0) for name in _DEPTHS}
                if any(depth > most_layers for depth in depths.values()):
                    raise ValueError(f"more layers than tensors: {depths}")
            positions = config.get_text_config().max_position_embeddings
            if not 0 < positions <= _MOST_POSITIONS:
                raise ValueError(f"max_position_embeddings must lie in 1 .. {_MOST_POSITIONS}, got {positions}")
            self.family.check_config(config)
            with torch.device("meta"):
                # One dtype, whatever the config says for each part.
                return self.family.model_class(config).float()

    def _describing(self) -> AbstractContextManager[None]:
        return reading(self.folder / "config.json", f"describes no {self.family.name}")
