"""Lists the families that the package knows: a new one is a file here and a name in `FAMILIES`."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedModel

from janus_dola.models.contexts import undisturbed
from janus_dola.models.families import emu3, janus
from janus_dola.models.model import Family, ImageModel

FAMILIES: tuple[Family, ...] = (janus.JANUS, janus.DEEPSEEK_JANUS, emu3.EMU3)
if find_spec("transformers.models.glm_image") is not None:  # since transformers 5
    from janus_dola.models.families.glm_image import GLM_IMAGE

    FAMILIES += (GLM_IMAGE,)


def family_of(model: PreTrainedModel) -> Family:
    """Finds a model's family, by the modules that the model has; none is a ValueError."""
    for family in FAMILIES:
        if family.recognises(model):
            return family
    allowed = " or ".join(family.class_name for family in FAMILIES)
    inner = getattr(model, "module", None)  # what DistributedDataParallel and its like wrap
    hint = "; hand over its .module" if any(family.recognises(inner) for family in FAMILIES) else ""
    raise ValueError(f"model must be {allowed}, got {type(model).__name__}{hint}")


def family_of_checkpoint(model_type: object) -> Family:
    """Finds a checkpoint's family, by the `model_type` in its config.json; none is a ValueError."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    names = " or ".join(dict.fromkeys(family.name for family in FAMILIES))
    allowed = ", ".join(f'"{family.model_type}"' for family in FAMILIES)
    raise ValueError(
        f"model must be a checkpoint of {names}, with one of the model types {allowed}, got {str(model_type)[:80]!r}"
    )


def adapt(model: PreTrainedModel) -> ImageModel:
    """Takes a model apart.

    Raises:
        ValueError: the model belongs to no family here, peft's adapter adds tokens, or bitsandbytes has quantized the image
            head.
    """
    model = getattr(model, "_orig_mod", model)  # what was compiled
    with undisturbed():
        return _adapt(model)


def _adapt(model: PreTrainedModel) -> ImageModel:
    if hasattr(model, "get_base_model"):  # a wrapper of peft's; most adapters lie in the model's own modules
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(f"model must have no adapter that adds tokens, got {model.active_peft_config.peft_type}")
        model = model.get_base_model()
    folder = Path(getattr(model, "name_or_path", "") or "/").absolute()
    image_model = replace(family_of(model).adapt(model), folder=folder if (folder / "config.json").is_file() else None)
    for kind in map(type, image_model.image_head):  # bitsandbytes quantizes it, too, unless it is asked to leave it out
        if kind.__module__.startswith("bitsandbytes"):
            raise ValueError(
                f"the image head must not be quantized, got {kind.__name__} of bitsandbytes: load the model with "
                f"BitsAndBytesConfig(..., llm_int8_skip_modules={[image_model.head_name]})"
            )
    return image_model
