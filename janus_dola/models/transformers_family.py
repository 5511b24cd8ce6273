"""transformers' `JanusForConditionalGeneration`."""

import math

from transformers import JanusForConditionalGeneration, PreTrainedModel

from janus_dola.models.janus import janus_parts
from janus_dola.models.parts import JanusParts, Vision


def recognises(model: PreTrainedModel) -> bool:
    """Whether the model has this family's modules."""
    inner = getattr(model, "model", None)
    return all(hasattr(inner, name) for name in ("language_model", "generation_head", "generation_aligner", "vqmodel"))


def parts(model: JanusForConditionalGeneration) -> JanusParts:
    """The pieces of the model."""
    inner = model.model
    head = inner.generation_head
    return janus_parts(
        family="transformers",
        backbone=inner.language_model,
        image_head=(head.proj_out, head.activation_fn, head.vision_head),
        head_name="model.generation_head",
        code_modules=(inner.generation_embeddings, inner.generation_aligner),
        decode_codes=inner.vqmodel.decode,
        side=math.isqrt(inner.vision_model.config.num_image_tokens),
        image_size=inner.vision_model.config.image_size,
        vision=Vision(model, lambda pixels: inner.aligner(inner.vision_model(pixels).last_hidden_state)),
    )
