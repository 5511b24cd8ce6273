"""transformers' `JanusForConditionalGeneration`."""

from transformers import JanusForConditionalGeneration, PreTrainedModel

from janus_dola.models.framing import special_tokens
from janus_dola.models.parts import JanusParts


def recognises(model: PreTrainedModel) -> bool:
    """Whether the model has this family's modules."""
    inner = getattr(model, "model", None)
    return all(hasattr(inner, name) for name in ("language_model", "generation_head", "generation_aligner", "vqmodel"))


def parts(model: JanusForConditionalGeneration) -> JanusParts:
    """The pieces of the model."""
    inner = model.model
    backbone, head = inner.language_model, inner.generation_head

    return JanusParts(
        family="transformers",
        config=backbone.config,
        backbone=backbone,
        blocks=backbone.layers,
        final_norm=backbone.norm,
        image_head=(head.proj_out, head.activation_fn, head.vision_head),
        embed_text=backbone.get_input_embeddings(),
        code_modules=(inner.generation_embeddings, inner.generation_aligner),
        decode_codes=inner.vqmodel.decode,
        image_tokens=inner.vision_model.config.num_image_tokens,
        image_size=inner.vision_model.config.image_size,
        special_tokens=special_tokens,
    )
