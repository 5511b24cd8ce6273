"""Draws images with DeepSeek Janus, with and without DoLa decoding. An image depends on its seed alone, not on its batch."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_dola.contrasts import DoLaConfig, SLEDConfig
    from janus_dola.images.outputs import DrawnImage, GenerationOutput, NonFiniteError
    from janus_dola.pipeline import JanusDoLa
    from janus_dola.training.lens_run import train_lens

__version__ = version("janus-dola")
__all__ = [
    "DoLaConfig",
    "DrawnImage",
    "GenerationOutput",
    "JanusDoLa",
    "NonFiniteError",
    "SLEDConfig",
    "__version__",
    "train_lens",
]
_MODULES = {
    "DoLaConfig": "contrasts",
    "DrawnImage": "images.outputs",
    "GenerationOutput": "images.outputs",
    "JanusDoLa": "pipeline",
    "NonFiniteError": "images.outputs",
    "SLEDConfig": "contrasts",
    "train_lens": "training.lens_run",
}


def __getattr__(name: str) -> Any:
    """Imports a public name, and torch with it, only when it is used: until then the command line answers Ctrl-C."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
