"""Janus models as the engine sees them: one adapter per family, checkpoints of both, and taps for hidden states."""

from janus_dola.models.find import find_parts
from janus_dola.models.load import load
from janus_dola.models.parts import JanusParts, PromptRows, Prompts, Raster

__all__ = ["JanusParts", "PromptRows", "Prompts", "Raster", "find_parts", "load"]
