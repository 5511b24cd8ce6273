"""Finds a checkpoint's folder by name: "mini", a folder, or a repository on the Hugging Face hub."""

import warnings
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download
from huggingface_hub.utils import validate_repo_id

from janus_dola.arguments import MINI
from janus_dola.models.checkpoint.reading import reason

_DESCRIPTION, _WEIGHTS = ["*.json", "*.jinja"], ["*.safetensors", "pytorch_model*.bin"]
# A repository of diffusers' has the model that draws codes in a folder of its own, beside those that paint them.
_DRAWS_CODES, _PAINTS = (
    "vision_language_encoder",
    ["scheduler/*", "text_encoder/*", "tokenizer/*", "transformer/*", "vae/*"],
)
_UNREACHABLE = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)


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
        return _with_config(path)
    if path.exists():
        raise FileNotFoundError(f"model must be a folder with a checkpoint, got the file {path}{_if_gguf([path])}")
    if not _can_be_repository(str(model)):
        raise FileNotFoundError(
            f'model must be "{MINI}", a folder or a repository OWNER/NAME on the Hugging Face hub: '
            f"there is no folder {str(model)!r}"
        )
    patterns = _DESCRIPTION + (_WEIGHTS if weights else [])
    try:
        downloaded = snapshot_download(str(model), revision=revision, allow_patterns=patterns, ignore_patterns=_PAINTS)
        return _that_draws_codes(Path(downloaded))
    except Exception as error:  # whichever HTTP library the hub's client is built on
        folder = _cached(str(model), revision or constants.DEFAULT_REVISION)
        if not isinstance(error, _UNREACHABLE) or not folder.is_dir():
            raise FileNotFoundError(_why_not(error, str(model), revision)) from error
    # The hub's client wants each file that the repository lists; a model needs fewer, and names what it lacks.
    try:
        snapshot_download(str(model), revision=revision, allow_patterns=["*.jinja"], local_files_only=True)
    except errors.LocalEntryNotFoundError:
        warnings.warn(
            f"{folder} lacks the chat template of its repository: prompts may be framed otherwise", stacklevel=2
        )
    return _with_config(folder)


def _that_draws_codes(folder: Path) -> Path:
    return folder / _DRAWS_CODES if (folder / _DRAWS_CODES / "config.json").is_file() else folder


def _with_config(folder: Path) -> Path:
    folder = _that_draws_codes(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model folder {folder} has no config.json{_if_gguf(folder.iterdir())}")
    return folder


def _cached(model: str, revision: str) -> Path:
    """Returns where the hub's cache keeps a revision of a repository, if it is there."""
    kept = Path(constants.HF_HUB_CACHE).expanduser() / f"models--{model.replace('/', '--')}"
    branch_or_tag = kept / "refs" / revision
    return kept / "snapshots" / (branch_or_tag.read_text().strip() if branch_or_tag.is_file() else revision)


def commit_of(model: str | Path) -> str | None:
    """Returns the commit of a model whose folder is a snapshot in the hub's cache; None for any other."""
    folder = Path(model).resolve()
    kept = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--") and folder.is_dir()
    return folder.name if kept else None


def public_name(model: str | Path) -> str:
    """Returns what a model is called where others may read it.

    For a folder that is its last name only, whatever lies above it; for a snapshot in the hub's cache its repository.
    """
    path = Path(model).resolve()
    if commit_of(model) is not None:
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name if path.is_dir() else str(model)


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
    if isinstance(error, _UNREACHABLE):
        sought = constants.DEFAULT_REVISION if revision is None else revision
        kept = sorted(folder.name for folder in _cached(model, sought).parent.glob("*"))
        if kept:
            return (
                f"model {model!r} was not downloaded before in the revision {sought!r}, but in {', '.join(kept)}, and the "
                "Hugging Face hub cannot be reached: connect (HF_HUB_OFFLINE must not be set), or name one of these"
            )
        return (
            f"model {model!r} is no folder here and was not downloaded before, and the Hugging Face hub cannot be reached: "
            f'connect (HF_HUB_OFFLINE must not be set), or draw with "{MINI}"'
        )
    return f"model {model!r} cannot be downloaded from the Hugging Face hub: {reason(error)}"


def _if_gguf(paths: Iterable[Path]) -> str:
    has_gguf = any(path.suffix == ".gguf" for path in paths)
    return "; GGUF is not read: take the checkpoint it was made from" if has_gguf else ""
