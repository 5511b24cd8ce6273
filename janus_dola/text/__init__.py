"""DoLa for text, through transformers' own `generate`."""

from janus_dola.text.decode import DoLaOutput, dola_generate

__all__ = ["DoLaOutput", "dola_generate"]
