"""Loads a Janus and its tokenizer by name: "mini", a folder, or a repository on the Hugging Face hub."""

import warnings
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from janus_dola.arguments import MINI
from janus_dola.models.checkpoint.deepseek import MODEL_TYPE, read_checkpoint, read_config
from janus_dola.models.checkpoint.files import check_weights, read_weights, report
from janus_dola.models.placement import device_and_dtype
from janus_dola.models.prompts import chat_template, special_tokens
from janus_dola.models.reading import UnreadableModelError, check_content, read_json, reading, reason

_DESCRIPTION, _WEIGHTS = ["*.json", "*.jinja"], ["*.safetensors", "pytorch_model*.bin"]
_MOST_LAYERS = 1000  # of a model whose weights are not there to be counted
_MOST_POSITIONS = 2**18  # published ones have 2**14; their table of rotations takes 256 MB then
_DEPTHS = ("num_hidden_layers", "depth", "num_res_blocks")  # in a config: how often a module is repeated


def resolve(model: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a checkpoint, downloaded first (without its weights, if so wished) where `model` is on the hub.

    Raises:
        FileNotFoundError: no checkpoint is there, or the hub cannot be asked for it.
        ValueError: a revision is given, and the model is of no repository.
    """
    path = Path(model)
    if revision is not None and (str(model) == MINI or path.exists()):
        raise ValueError(f"revision goes with a repository on the hub, not with {str(model)!r}, got {revision!r}")
    if str(model) == MINI:
        return Path(str(files("janus_dola.mini").joinpath("checkpoint")))
    if path.is_dir():
        _check_folder(path)
        return path
    if path.exists():
        raise FileNotFoundError(f"model must be a folder with a checkpoint, got the file {path}{_if_gguf([path])}")
    patterns = _DESCRIPTION + (_WEIGHTS if weights else [])
    if not _can_be_repository(str(model)):
        raise FileNotFoundError(
            f'model must be "{MINI}", a folder or a repository OWNER/NAME on the Hugging Face hub: '
            f"there is no folder {str(model)!r}"
        )
    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=patterns))
    except Exception as error:  # of whichever HTTP library the hub's client is built on
        raise FileNotFoundError(_told_of_hub(error, str(model), revision)) from error


def _can_be_repository(model: str) -> bool:
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return "/" in model and not model.startswith((".", "~"))


def _told_of_hub(error: Exception, model: str, revision: str | None) -> str:
    """What went wrong with a repository, and what to do, in one line."""
    if isinstance(error, GatedRepoError):  # which is a RepositoryNotFoundError, too
        return (
            f"model {model!r} is gated: ask for access on its page on the Hugging Face hub, then log in here "
            "(hf auth login, or the variable HF_TOKEN)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"model {model!r} is neither a folder here nor a repository on the Hugging Face hub that you may read; "
            "for a private one log in (hf auth login, or the variable HF_TOKEN)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"model {model!r} has no revision {revision!r}"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return (
            f"model {model!r} is no folder here and was not downloaded before, and the Hugging Face hub cannot be reached: "
            f'connect (HF_HUB_OFFLINE must not be set), or draw with "{MINI}"'
        )
    return f"model {model!r} cannot be downloaded from the Hugging Face hub: {reason(error)}"


def public_name(model: str | Path) -> str:
    """What a model is called where others may read it: of a folder its last name only, whatever lies above it."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else str(model)


def _check_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"model folder {folder} holds a PEFT adapter: merge it into its model first "
            "(merge_and_unload(), then save_pretrained() into a folder without adapter_config.json)"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model folder {folder} has no config.json{_if_gguf(folder.iterdir())}")


def _if_gguf(paths: Iterable[Path]) -> str:
    found = any(path.suffix == ".gguf" for path in paths)
    return "; GGUF is not read: take the checkpoint it was made from" if found else ""


def load(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A Janus model, in transformers' class, and its tokenizer.

    Args:
        model: "mini", a folder or a repository; in transformers' format or in DeepSeek's own.
        device: None is a GPU where there is one.
        dtype: None is float32 on a CPU and bfloat16 elsewhere, float16 on a GPU without bfloat16.
        revision: of a repository.
    Raises:
        FileNotFoundError: no checkpoint is there.
        UnreadableModelError (a ValueError): a file is damaged, or the weights are not those of the model, each and all.
        ValueError: the checkpoint is not a Janus model, the dtype is unknown, or the device is not there.
    """
    device, wanted = device_and_dtype(device, dtype)
    folder = resolve(model, revision)
    description = _describe(folder)
    tokenizer = load_tokenizer(folder)
    deepseek = description["model_type"] == MODEL_TYPE
    loaded = (_load_deepseek if deepseek else _load_transformers)(folder, description, wanted)
    rows, longest = loaded.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values(), default=0)
    if longest >= rows:
        raise UnreadableModelError(
            f"{folder} must hold model and tokenizer of one Janus: {rows} embeddings, token {longest}"
        )
    if deepseek:
        _let_generate(loaded, tokenizer)
    return loaded.to(device).eval(), tokenizer


def _load_transformers(folder: Path, description: dict[str, Any], dtype: torch.dtype) -> JanusForConditionalGeneration:
    config, weights = _transformers_config(folder, description), read_weights(folder)
    if "quantization_config" not in description:  # which stores other tensors than the model's
        check_weights(folder, _skeleton(folder, config, len(weights)), weights)
    return _loaded(folder, folder, config=config, dtype=dtype)


def _load_deepseek(folder: Path, description: dict[str, Any], dtype: torch.dtype) -> JanusForConditionalGeneration:
    config, weights = read_checkpoint(folder, description)
    check_weights(folder, _skeleton(folder, config, len(weights)), weights)
    return _loaded(folder, None, config=config, state_dict=weights, dtype=dtype)


def _loaded(folder: Path, source: Path | None, **settings: Any) -> JanusForConditionalGeneration:
    """What transformers loads; whatever its report complains of is an error."""
    with reading(folder, "cannot be loaded"):
        model, loading = JanusForConditionalGeneration.from_pretrained(
            source, **settings, output_loading_info=True, ignore_mismatched_sizes=True
        )
    report(folder, **loading)
    return model


def _let_generate(model: JanusForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """What transformers' own `generate(generation_mode="image")` looks up, and DeepSeek's format does not hold."""
    special, generation = special_tokens(tokenizer), model.generation_config
    generation.bos_token_id, generation.pad_token_id = special.bos, special.pad
    generation.eos_token_id = tokenizer.eos_token_id
    generation.guidance_scale = 5.0
    generation.generation_kwargs = {"boi_token_id": special.begin_of_image}
    model.config.image_token_id = tokenizer.get_vocab().get("<image_placeholder>", model.config.image_token_id)


def load_skeleton(model: str | Path, revision: str | None = None) -> PreTrainedModel:
    """A Janus model without weights, on the device "meta": enough to look at its layers and shapes.

    Of a repository it downloads no weights, of a folder it reads none.

    Raises:
        FileNotFoundError, ValueError: as for `load`.
    """
    folder = resolve(model, revision, weights=False)
    description = _describe(folder)
    deepseek = description["model_type"] == MODEL_TYPE
    config = (read_config if deepseek else _transformers_config)(folder, description)
    return _skeleton(folder, config, _MOST_LAYERS)


def _transformers_config(folder: Path, description: dict[str, Any]) -> JanusConfig:
    with reading(folder / "config.json", "does not describe a Janus"):
        return JanusConfig.from_dict(description)


def _skeleton(folder: Path, config: JanusConfig, most_layers: int) -> JanusForConditionalGeneration:
    with reading(folder / "config.json", "does not describe a Janus"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about sizes of zero
        for part in (config.text_config, config.vision_config, config.vq_config):
            depths = {name: getattr(part, name, 0) for name in _DEPTHS}
            if any(depth > most_layers for depth in depths.values()):
                raise ValueError(f"more layers than tensors: {depths}")
        positions = config.text_config.max_position_embeddings
        if not 0 < positions <= _MOST_POSITIONS:
            raise ValueError(f"max_position_embeddings must lie in 1 .. {_MOST_POSITIONS}, got {positions}")
        _check_image_sizes(config)
        with torch.device("meta"):
            # One dtype, whatever the config says of each part.
            return JanusForConditionalGeneration(config).float()


def _check_image_sizes(config: JanusConfig) -> None:
    vision, levels = config.vision_config, len(config.vq_config.channel_multiplier)
    side = vision.image_size // vision.patch_size  # codes a side
    if vision.num_image_tokens != side**2 or vision.image_size != side * 2 ** (levels - 1):
        raise ValueError(
            f"{vision.num_image_tokens} image tokens of {vision.patch_size} pixels a side and {levels} levels of decoding "
            f"do not make an image of {vision.image_size} pixels a side"
        )


def _describe(folder: Path) -> dict[str, Any]:
    """What `config.json` holds, once all JSON files of a checkpoint were found to be such."""
    others = (
        "generation_config",
        "processor_config",
        "special_tokens_map",
        "added_tokens",
        "tokenizer_config",
        "tokenizer",
    )
    for path in (folder / f"{name}.json" for name in others):
        if path.exists():
            read_json(path)
    if (folder / "chat_template.jinja").exists():
        check_content(folder / "chat_template.jinja")
    description = read_json(folder / "config.json")
    found = description.get("model_type")
    if found not in ("janus", MODEL_TYPE):
        raise ValueError(
            f'model must be a Janus checkpoint (model_type "janus" or "{MODEL_TYPE}"), got {str(found)[:80]!r}'
        )
    return description


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, exactly as its `tokenizer.json` describes it, with the chat template of its processor.

    Raises:
        FileNotFoundError: there is none.
        UnreadableModelError: it cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"model folder {folder} has no tokenizer.json: copy tokenizer.json, tokenizer_config.json and "
            "special_tokens_map.json from the checkpoint that the model was made from"
        )
    with reading(folder / "tokenizer.json", "cannot be loaded with the files beside it"):
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            if not tokenizer("x", add_special_tokens=False)["input_ids"]:
                raise ValueError("it makes no tokens of a word")
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(reason(error)) from error
    template, processor = folder / "chat_template.json", folder / "processor_config.json"
    if tokenizer.chat_template is None and template.is_file():
        # Processors of transformers 4 kept the template in a file of their own.
        tokenizer.chat_template = read_json(template).get("chat_template")
    if tokenizer.chat_template is None and processor.is_file():
        tokenizer.chat_template = chat_template(tokenizer, read_json(processor).get("sft_format"))
    return tokenizer
