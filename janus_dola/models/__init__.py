"""Turns checkpoints and models of any family into an `ImageModel`, which is what the engine draws with."""

from janus_dola.models.checkpoint.load import load
from janus_dola.models.families import adapt
from janus_dola.models.model import ImageModel, PromptRows, Prompts, Raster

__all__ = ["ImageModel", "PromptRows", "Prompts", "Raster", "adapt", "load"]
