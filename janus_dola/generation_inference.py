"""The name under which the original integration has `janus_dola.original.generation_inference`."""

from janus_dola.original.generation_inference import generate, generate_with_dola

__all__ = ["generate", "generate_with_dola"]
