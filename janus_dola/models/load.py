"""Loads a Janus and its tokenizer by name: "mini", a folder, or a repository on the Hugging Face hub."""

import json
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from janus_dola.models.deepseek_checkpoint import MODEL_TYPE, load_deepseek_checkpoint, read_config

MINI = "mini"
HINT_AT_MINI = (
    'Drawing with "mini", which knows coloured shapes only ("a large red circle on white"); '
    "a real Janus: --model deepseek-community/Janus-Pro-1B"
)
_DESCRIPTION, _WEIGHTS = ["*.json", "*.jinja"], ["*.safetensors", "pytorch_model*.bin"]


def default_device() -> torch.device:
    """CUDA or Apple's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating dtype by name ("float32", "bfloat16", "float16"; also "fp32", "bf16", "fp16") or itself.

    Raises:
        ValueError: it is none of those.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    names |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    found = names.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in names.values():
        raise ValueError(f"dtype must be one of {list(names)}, got {dtype!r}")
    return found


def resolve(model: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a checkpoint, downloaded first (without its weights, if so wished) where `model` is on the hub.

    Raises:
        FileNotFoundError: no checkpoint is there.
    """
    if str(model) == MINI:
        return Path(str(files("janus_dola.mini").joinpath("checkpoint")))
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model folder {path} has no config.json")
        return path
    patterns = _DESCRIPTION + (_WEIGHTS if weights else [])
    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f'model must be "{MINI}", a folder with a checkpoint or a repository on the Hugging Face hub, got '
            f"{str(model)!r}: {str(error).splitlines()[0]}"
        ) from error


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
        dtype: None is float32 on a CPU and bfloat16 elsewhere.
        revision: of a repository.
    Raises:
        FileNotFoundError: no checkpoint is there.
        ValueError: the checkpoint is not a Janus model, or the dtype is unknown.
    """
    device = torch.device(device) if device is not None else default_device()
    wanted = parse_dtype(dtype) if dtype is not None else (torch.float32 if device.type == "cpu" else torch.bfloat16)
    folder = resolve(model, revision)
    if _model_type(folder) == MODEL_TYPE:
        loaded = load_deepseek_checkpoint(folder, wanted)
    else:
        loaded = JanusForConditionalGeneration.from_pretrained(folder, dtype=wanted)
    return loaded.to(device).eval(), load_tokenizer(folder)


def load_skeleton(model: str | Path) -> PreTrainedModel:
    """A Janus model without weights, on the device "meta": enough to look at its layers and shapes.

    Raises:
        FileNotFoundError, ValueError: as for `load`.
    """
    folder = resolve(model, weights=False)
    # DeepSeek's config leaves some shapes to the weights.
    deepseek = _model_type(folder) == MODEL_TYPE
    config = read_config(resolve(model)) if deepseek else JanusConfig.from_pretrained(folder)
    with torch.device("meta"):
        return JanusForConditionalGeneration(config)


def _model_type(folder: Path) -> str:
    found = PretrainedConfig.get_config_dict(folder)[0].get("model_type")
    if found not in ("janus", MODEL_TYPE):
        raise ValueError(f'model must be a Janus checkpoint (model_type "janus" or "{MODEL_TYPE}"), got {found!r}')
    return found


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, exactly as its `tokenizer.json` describes it, with the processor's chat template."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if tokenizer.chat_template is None and (folder / "chat_template.json").is_file():
        # Processors of transformers 4 kept the template in a file of their own.
        template = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))
        tokenizer.chat_template = template["chat_template"]
    return tokenizer
