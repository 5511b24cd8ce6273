"""Janus models as the engine sees them: one adapter per family, checkpoints of both, and taps for hidden states."""

from janus_dola.models.checkpoint.load import load
from janus_dola.models.families import adapt
from janus_dola.models.model import ImageModel, PromptRows, Prompts, Raster

__all__ = ["ImageModel", "PromptRows", "Prompts", "Raster", "adapt", "load"]
