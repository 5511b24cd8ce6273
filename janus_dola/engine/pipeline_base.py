"""A model with its tokenizer, taken apart for drawing; how it is copied, and why it cannot be pickled."""

import copy
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from typing_extensions import Self

from janus_dola.engine.engine import Engine
from janus_dola.models import ImageModel, adapt
from janus_dola.models.contexts import undisturbed
from janus_dola.models.soundness import check_sound

_DERIVED = ("image_model", "prompts", "engine")  # made from model and tokenizer


class PipelineBase:
    """Holds a model, its tokenizer, and what is made from both."""

    _stores = False  # whether weights are packed, or laid as one: only if the model was loaded here

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> None:
        self.model = model
        self.tokenizer = tokenizer.tokenizer if isinstance(tokenizer, ProcessorMixin) else tokenizer
        self._adapt()

    def _adapt(self) -> None:
        self.image_model: ImageModel = adapt(self.model)
        self.prompts = self.image_model.prompts(self.tokenizer)
        self.engine = Engine(self.image_model)

    def _drawn_with(self) -> ImageModel:
        """Returns the pieces that the model has now: an adapter or other embeddings may have come. All must be here."""
        if adapt(self.model).modules != self.image_model.modules:
            self._adapt()
        check_sound(self.image_model.modules)
        return self.image_model

    def __copy__(self) -> Self:
        """Returns another object with the same model, tokenizer and engine."""
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies model and tokenizer: the copy draws the same, and neither changes the other."""
        new = memo[id(self)] = copy.copy(self)
        with undisturbed():
            own = {name: value for name, value in vars(self).items() if name not in _DERIVED}
            vars(new).update(copy.deepcopy(own, memo))
        new._adapt()
        if self._stores:
            new.engine.weights.lay_as_one()
        return new

    def __reduce_ex__(self, protocol: object) -> str | tuple[Any, ...]:
        """Refuses to be pickled, as torch.save, multiprocessing and Ray do."""
        raise TypeError(
            f"cannot pickle {type(self).__name__}, which holds locks and a device's memory: save model and tokenizer "
            "with save_pretrained(folder), and load them with JanusDoLa.from_pretrained(folder) where they are needed"
        )
