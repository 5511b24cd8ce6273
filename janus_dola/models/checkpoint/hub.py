"""Finds a checkpoint's folder by name: "mini", a folder, or a repository on the Hugging Face hub."""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from huggingface_hub import errors, snapshot_download
from huggingface_hub.utils import validate_repo_id

from janus_dola.arguments import MINI
from janus_dola.models.checkpoint.reading import reason

_DESCRIPTION, _WEIGHTS = ["*.json", "*.jinja"], ["*.safetensors", "pytorch_model*.bin"]


def resolve(model: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """Returns a checkpoint's folder, downloaded first (without `weights`, its description only) where it is on the hub.

    Raises:
        FileNotFoundError: no checkpoint is there, or the hub cannot be asked for it.
        ValueError: a revision is given, and the model is no repository.
    """
    path = Path(model)
    if revision is not None and (str(model) == MINI or path.exists()):
        raise ValueError(f"revision goes with a repository on the hub, not with {str(model)!r}, got {revision!r}")
    if str(model) == MINI:
        return Path(str(files("janus_dola.mini").joinpath("checkpoint")))
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            raise FileNotFoundError(
                f"model folder {path} holds a PEFT adapter: merge it into its model first "
                "(merge_and_unload(), then save_pretrained() into a folder without adapter_config.json)"
            )
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model folder {path} has no config.json{_if_gguf(path.iterdir())}")
        return path
    if path.exists():
        raise FileNotFoundError(f"model must be a folder with a checkpoint, got the file {path}{_if_gguf([path])}")
    if not _can_be_repository(str(model)):
        raise FileNotFoundError(
            f'model must be "{MINI}", a folder or a repository OWNER/NAME on the Hugging Face hub: '
            f"there is no folder {str(model)!r}"
        )
    patterns = _DESCRIPTION + (_WEIGHTS if weights else [])
    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=patterns))
    except Exception as error:  # whichever HTTP library the hub's client is built on
        raise FileNotFoundError(_why_not(error, str(model), revision)) from error


def public_name(model: str | Path) -> str:
    """Returns what a model is called where others may read it; for a folder its last name only, whatever lies above it."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else str(model)


def _can_be_repository(model: str) -> bool:
    try:
        validate_repo_id(model)
    except errors.HFValidationError:
        return False
    return "/" in model and not model.startswith((".", "~"))


def _why_not(error: Exception, model: str, revision: str | None) -> str:
    """Says in one line what went wrong with a repository, and what to do."""
    if isinstance(error, errors.GatedRepoError):  # which is a RepositoryNotFoundError, too
        return (
            f"model {model!r} is gated: ask for access on its page on the Hugging Face hub, then log in here "
            "(hf auth login, or the variable HF_TOKEN)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"model {model!r} is neither a folder here nor a repository on the Hugging Face hub that you may read; "
            "for a private one log in (hf auth login, or the variable HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"model {model!r} has no revision {revision!r}"
    offline = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if isinstance(error, offline):
        return (
            f"model {model!r} is no folder here and was not downloaded before, and the Hugging Face hub cannot be reached: "
            f'connect (HF_HUB_OFFLINE must not be set), or draw with "{MINI}"'
        )
    return f"model {model!r} cannot be downloaded from the Hugging Face hub: {reason(error)}"


def _if_gguf(paths: Iterable[Path]) -> str:
    has_gguf = any(path.suffix == ".gguf" for path in paths)
    return "; GGUF is not read: take the checkpoint it was made from" if has_gguf else ""
