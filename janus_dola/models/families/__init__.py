"""Which family a model belongs to."""

from transformers import PreTrainedModel

from janus_dola.models.families import emu3, janus
from janus_dola.models.model import ImageModel

FAMILIES = (janus.TRANSFORMERS, janus.DEEPSEEK, emu3.EMU3)


def adapt(model: PreTrainedModel) -> ImageModel:
    """Takes a model apart, recognising its family by the modules it has.

    Raises:
        ValueError: it is of no family that has an adapter here, peft's adapter adds tokens, or bitsandbytes has quantized
            the image head.
    """
    found = model
    if hasattr(model, "get_base_model"):  # a wrapper of peft's; most adapters lie in the model's own modules
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(f"model must have no adapter that adds tokens, got {model.active_peft_config.peft_type}")
        found = model.get_base_model()
    for family in FAMILIES:
        if family.recognises(found):
            image_model = family.adapt(found)
            _refuse_few_bits(image_model)
            return image_model
    raise ValueError(
        "model must be transformers' JanusForConditionalGeneration or Emu3ForConditionalGeneration, or DeepSeek's "
        f"MultiModalityCausalLM, got {type(model).__name__}"
    )


def _refuse_few_bits(image_model: ImageModel) -> None:
    """bitsandbytes takes the image head, too, unless it is told to leave it out."""
    for linear in image_model.image_head:
        kind = type(linear)
        if kind.__module__.startswith("bitsandbytes"):
            raise ValueError(
                f"the image head must not be quantized, got {kind.__name__} of bitsandbytes: load the model with "
                f"BitsAndBytesConfig(..., llm_int8_skip_modules={[image_model.head_name]})"
            )
