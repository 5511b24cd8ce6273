"""Which family a model belongs to."""

from transformers import PreTrainedModel

from janus_dola.models import deepseek_family, transformers_family
from janus_dola.models.parts import JanusParts


def find_parts(model: PreTrainedModel) -> JanusParts:
    """Takes a model apart, recognising its family by the modules it has.

    Raises:
        ValueError: it is neither transformers' `JanusForConditionalGeneration` nor DeepSeek's `MultiModalityCausalLM`.
    """
    for family in (transformers_family, deepseek_family):
        if family.recognises(model):
            return family.parts(model)
    raise ValueError(
        "model must be transformers' JanusForConditionalGeneration or DeepSeek's MultiModalityCausalLM, "
        f"got {type(model).__name__}"
    )
