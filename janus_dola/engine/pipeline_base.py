"""A model with its tokenizer, taken apart for drawing; rows of prompts; how it is copied, and why it cannot be pickled."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from typing_extensions import Self

from janus_dola.arguments import check_negative, shown, strings
from janus_dola.engine.engine import Engine
from janus_dola.engine.plan import lens_of
from janus_dola.engine.scoring import check_codes, indices_of_layers
from janus_dola.kernels.types import SamplingParams
from janus_dola.models import ImageModel, PromptRows, adapt
from janus_dola.models.contexts import undisturbed
from janus_dola.models.soundness import check_sound
from janus_dola.settings import Changes, DrawSettings, with_changes

_DERIVED = ("image_model", "prompts", "engine")  # made from model and tokenizer


class PipelineBase:
    """Holds a model, its tokenizer, and what is made from both; encodes prompts."""

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

    def fitted(self, settings: DrawSettings, changes: Changes | None = None) -> DrawSettings:
        """Returns settings with some fields replaced, and `cfg_weight` 1 where nothing guides the model.

        A value out of range is a ValueError, and so is guidance there: a weight other than 1 and the default, or a negative
        prompt.
        """
        settings = with_changes(settings, changes or {})
        if self.image_model.guided:
            return settings
        if settings.cfg_weight not in (1, DrawSettings.cfg_weight):
            raise ValueError(f"cfg_weight must be 1 for a model that nothing guides, got {settings.cfg_weight}")
        if settings.negative_prompt is not None:
            raise ValueError(
                f"negative_prompt must be None for a model that nothing guides, got {shown(settings.negative_prompt)}"
            )
        return replace(settings, cfg_weight=1.0)

    def _check(self, settings: DrawSettings) -> None:
        """Raises ValueError where the model cannot draw with these settings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # drawing says it
            fitted = self.fitted(settings)
            fitted.layers_to_read(self.image_model.num_layers)
            lens_of(self.image_model, fitted)

    def encode(self, prompts: str | Sequence[str], negative_prompt: str | None = None) -> list[PromptRows]:
        """Returns the token ids that images are drawn from: a conditional and an unconditional row for each prompt.

        With a Janus both rows begin with bos, end with begin-of-image, and are equally long.

        Args:
            prompts: one or several.
            negative_prompt: as for `generate`; with a Janus the shorter row of both has pads then.
        Raises:
            ValueError: a prompt is no string, or too long for the model.
        """
        rows = self._rows_of_prompt(negative_prompt)
        return [rows(prompt) for prompt in strings(prompts)]

    def check_prompt(self, prompt: str) -> None:
        """Raises ValueError where a prompt is too long for the model."""
        self._prompt_ids(prompt)

    def _rows_of_prompt(self, negative_prompt: str | None) -> Callable[[str], PromptRows]:
        negative = check_negative(negative_prompt)  # an error comes before anything is drawn
        negative_ids = None if negative is None else self._prompt_ids(negative, "negative_prompt")
        return lambda prompt: self.prompts.rows(self._prompt_ids(prompt), negative_ids)

    def _prompt_ids(self, prompt: str, name: str = "prompts") -> list[int]:
        ids, length = self.prompts.ids(prompt), self.image_model.raster.length
        room = self.image_model.config.max_position_embeddings - length
        if len(ids) > room:
            raise ValueError(
                f"{name} must leave room for {length} image tokens: at most {room} tokens each, "
                f"got one of {len(ids)} tokens: {prompt[:40]!r}"
            )
        return ids

    def _given(
        self, prompts: str | Sequence[str], tokens: Tensor, settings: DrawSettings, premature_layers: Tensor | None
    ) -> tuple[list[PromptRows], tuple[int, ...], SamplingParams, Tensor | None]:
        """Returns what given codes are scored with: rows, layers read, numbers and given layers; checks the arguments."""
        rows = self.encode(prompts, settings.away_from)
        check_codes(tokens, len(rows), self.image_model)
        layers = settings.layers_to_read(self.image_model.num_layers)
        params, numbers = settings.sampling_params(layers), (*layers, self.image_model.num_layers)
        given = None if premature_layers is None else indices_of_layers(premature_layers, tokens, numbers, params)
        return rows, layers, params, given

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
