"""Fast image generation with DeepSeek Janus, with and without DoLa decoding."""

from importlib.metadata import version

from janus_dola.config import DoLaConfig
from janus_dola.pipeline import GenerationOutput, JanusDoLa, NonFiniteError

__version__ = version("janus-dola")
__all__ = ["DoLaConfig", "GenerationOutput", "JanusDoLa", "NonFiniteError", "__version__"]
