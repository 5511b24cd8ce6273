"""`generate` with DoLa or SLED; the card of this repository lists the arguments."""

from dataclasses import fields

from transformers import GenerationMixin

from .contrasts import CONTRASTS
from .decode import dola_generate


def generate(model, *args, contrast=None, **kwargs):
    """Decodes as `model.generate(*args, **kwargs)` does, by contrasting layers.

    Args:
        contrast: "dola" or "sled"; None is DoLa.
        kwargs: settings of the contrast, and whatever `generate` takes.
    Raises:
        ValueError: there is no such contrast, a setting is out of range, or the model cannot be read layer by layer.
    """
    if contrast not in (None, *CONTRASTS):
        raise ValueError(f"contrast must be one of {[*CONTRASTS]}, got {contrast!r}")
    method = CONTRASTS[contrast or "dola"]
    settings = {each.name: kwargs.pop(each.name) for each in fields(method) if each.name in kwargs}
    if contrast or settings:
        kwargs["contrast"] = method(**settings)
    return GenerationMixin.generate(model, *args, custom_generate=dola_generate, **kwargs)
