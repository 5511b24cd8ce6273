"""transformers' `JanusForConditionalGeneration`."""

from torch import Tensor
from transformers import JanusForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from janus_dola.models.parts import BEGIN_OF_IMAGE, JanusParts, SpecialTokens, head_of, named_token_id, token_id


def recognises(model: PreTrainedModel) -> bool:
    """Whether the model has this family's modules."""
    inner = getattr(model, "model", None)
    return all(hasattr(inner, name) for name in ("language_model", "generation_head", "generation_aligner", "vqmodel"))


def parts(model: JanusForConditionalGeneration) -> JanusParts:
    """The pieces of the model."""
    inner = model.model
    backbone, head = inner.language_model, inner.generation_head

    def embed_codes(codes: Tensor) -> Tensor:
        return inner.generation_aligner(inner.generation_embeddings(codes))

    return JanusParts(
        family="transformers",
        config=backbone.config,
        backbone=backbone,
        blocks=backbone.layers,
        final_norm=backbone.norm,
        head=head_of(backbone.norm, head.proj_out, head.activation_fn, head.vision_head),
        embed_text=backbone.get_input_embeddings(),
        embed_codes=embed_codes,
        decode_codes=inner.vqmodel.decode,
        image_tokens=inner.vision_model.config.num_image_tokens,
        image_size=inner.vision_model.config.image_size,
        special_tokens=_special_tokens,
    )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    return SpecialTokens(
        bos=named_token_id(tokenizer, "bos_token"),
        begin_of_image=token_id(tokenizer, BEGIN_OF_IMAGE),
        pad=named_token_id(tokenizer, "pad_token"),
    )
