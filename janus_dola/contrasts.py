"""The methods that contrast layers, each a class that checks its own settings.

What a method computes is the function of the same name in `janus_dola.kernels.contrast`. This module does not import torch.
"""

import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from janus_dola.arguments import integer, number, several
from janus_dola.kernels.params import LARGEST, LARGEST_WEIGHT, MAX_TOP_K, log_of


def about(default: Any, help: str, nothing: str | None = None, parse: Callable[[str], Any] | None = None) -> Any:
    """Declares a settings field with the text that the command line and the server show for it, see `Setting`."""
    return field(default=default, metadata={"help": help, "nothing": nothing, "parse": parse})


def parse_layers(text: str) -> list[int] | Literal["auto"]:
    """Reads "auto", or layers separated by commas; anything else is a ValueError."""
    if text.strip() == "auto":
        return "auto"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'candidate_layers must be "auto" or integers separated by commas, got {text!r}') from None


def check_layers(layers: object) -> Literal["auto"] | tuple[int, ...]:
    """Returns `candidate_layers` as "auto" or a tuple of at least one int; anything else is a ValueError."""
    if isinstance(layers, str) and layers == "auto":
        return "auto"
    numbers = tuple(_int(layer) for layer in several(layers) or ())
    if not numbers or None in numbers:
        raise ValueError(f'candidate_layers must be "auto" or a list of ints, got {layers!r}')
    return numbers  # type: ignore[return-value]


def parse_premature(text: str) -> int | Literal["final"]:
    """Reads "final", or a layer; anything else is a ValueError."""
    if text == "final":
        return "final"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'premature_layer must be an integer or "final", got {text!r}') from None


def auto_candidate_layers(num_hidden_layers: int) -> list[int]:
    """Returns every second layer among the last eight below the final one: 30 blocks give 22, 24, 26, 28."""
    return [layer for layer in range(num_hidden_layers - 8, num_hidden_layers, 2) if layer >= 1]


def sanitize_candidate_layers(layers: Sequence[int], num_hidden_layers: int) -> list[int]:
    """Returns the layers in 1 .. N-1, ascending and without repetition; others are dropped with one warning.

    Args:
        layers: indices as in Hugging Face's `hidden_states`: 0 is the embeddings, j the output of block j.
        num_hidden_layers: N, the number of blocks; N itself is the final layer.
    Raises:
        ValueError: no layer is left.
    """
    kept = sorted({layer for layer in layers if 1 <= layer <= num_hidden_layers - 1})
    dropped = sorted(set(layers) - set(kept))
    if not kept:
        raise ValueError(
            f"candidate_layers must name a layer in 1 .. {num_hidden_layers - 1} "
            f"(this model has {num_hidden_layers} blocks), got {list(layers)}"
        )
    if dropped:
        warnings.warn(
            f"candidate_layers outside 1 .. {num_hidden_layers - 1} dropped: {dropped}; {kept} remain", stacklevel=2
        )
    return kept


@dataclass(frozen=True)
class Contrast(ABC):
    """A method that contrasts layers, with its settings.

    A subclass is a frozen dataclass whose fields are declared by `about` and checked when it is made. It stands in
    `CONTRASTS`, and its method in `kernels.contrast.METHODS` under the same name.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # the name as people write it

    @abstractmethod
    def layers_to_read(self, num_hidden_layers: int) -> list[int]:
        """Returns the layers below the final one that the method needs, ascending; ValueError: the model lacks one."""

    @abstractmethod
    def numbers(self, layers: Sequence[int]) -> dict[str, float]:
        """Returns what `kernels.contrast` computes with, by name, for passes that read these layers and the final one."""

    @abstractmethod
    def summary(self) -> str:
        """Describes the contrast in few words, for people."""

    def layers_to_share(self, num_hidden_layers: int) -> list[int]:
        """Returns the layers to read where images with other settings are in the same pass, see `layers_to_read`."""
        return self.layers_to_read(num_hidden_layers)


@dataclass(frozen=True)
class DoLaConfig(Contrast):
    """Decoding by contrasting layers (Chuang et al., ICLR 2024, arXiv 2309.03883).

    Attributes:
        candidate_layers: "auto" (see `auto_candidate_layers`) or layer indices as in Hugging Face's `hidden_states`.
        alpha: threshold of the adaptive plausibility constraint, in [0, 1]: codes with less than alpha times the top
            probability of the final layer are never drawn.
        premature_layer: None contrasts with the candidate that diverges most, chosen for each image and token; an integer
            always with that layer (DoLa-static); "final" with none, which leaves the plain distribution on the plausible
            codes, and with alpha = 0 the baseline exactly.
        beta: how far the scores move away from the premature layer M, in 0 .. 999: F = (1 + beta) log q_N - beta log q_M; 0
            not at all. None is DoLa's own F = log q_N - log q_M, which a large beta at the temperature beta comes near to.
        lens: reads the early layers through a lens (`janus_dola.train_lens`): "auto" for the one that lies beside the
            model's weights, or a file's name. None is none, as in the paper.

    Raises:
        ValueError: a value is out of range.
    """

    name: ClassVar[str] = "dola"
    title: ClassVar[str] = "DoLa"

    candidate_layers: Literal["auto"] | Sequence[int] = about(
        "auto",
        "layers to choose from, 1 .. N-1 in a model with N blocks (`janus-dola info` shows N), such as 2,4,6; "
        "auto is N-8, N-6, N-4 and N-2.",
        parse=parse_layers,
    )
    alpha: float = about(
        0.1, "codes with less than ALPHA (0 .. 1) times the top probability of the final layer are never drawn."
    )
    premature_layer: int | Literal["final"] | None = about(
        None,
        "always contrast with this layer, 1 .. N-1; final contrasts with none.",
        "the candidate that differs most, by JSD",
        parse_premature,
    )
    beta: float | None = about(
        None,
        "how far scores move away from the premature layer: F = (1 + BETA) log q_N - BETA log q_M, 0 .. 999.",
        "as in the paper, F = log q_N - log q_M",
    )
    lens: str | None = about(
        None, "read early layers through a lens, trained by `janus-dola lens`: auto is the model's own.", "none"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_alpha(self.alpha))
        object.__setattr__(self, "candidate_layers", check_layers(self.candidate_layers))
        forced = self.premature_layer
        if forced is not None and forced != "final":
            layer = _int(forced)
            if layer is None:
                raise ValueError(f'premature_layer must be None, "final" or an int, got {forced!r}')
            object.__setattr__(self, "premature_layer", layer)
        if not (self.lens is None or (isinstance(self.lens, str) and self.lens)):
            raise ValueError(f'lens must be None, "auto" or the name of a file, got {self.lens!r}')
        if self.beta is not None:
            object.__setattr__(self, "beta", number("beta", self.beta, f" in 0 .. {LARGEST_WEIGHT - 1:g}, or None"))
            if not 0 <= self.beta <= LARGEST_WEIGHT - 1:
                raise ValueError(f"beta must be None or lie in 0 .. {LARGEST_WEIGHT - 1:g}, got {self.beta:g}")

    def summary(self) -> str:
        """Describes the contrast in few words, for people."""
        if self.premature_layer == "final":
            return f"no contrast, alpha {self.alpha:g}"
        if self.premature_layer is not None:
            layers = f"layer {self.premature_layer}"
        else:
            layers = f"layers {_in_words(self.candidate_layers)}"
        beta = "" if self.beta is None else f" beta {self.beta:g}"
        return f"DoLa alpha {self.alpha:g}{beta}, {layers}"

    def layers_to_read(self, num_hidden_layers: int) -> list[int]:
        """Returns the candidates; no layer for "final", one for a static layer. ValueError: the model has none of them."""
        if self.premature_layer == "final":
            return []
        if self.premature_layer is not None:
            if not 1 <= self.premature_layer <= num_hidden_layers - 1:
                raise ValueError(
                    f'premature_layer must lie in 1 .. {num_hidden_layers - 1}, or be "final" or None, '
                    f"got {self.premature_layer}"
                )
            return [self.premature_layer]
        auto = self.candidate_layers == "auto"
        layers = auto_candidate_layers(num_hidden_layers) if auto else self.candidate_layers
        return sanitize_candidate_layers(layers, num_hidden_layers)  # type: ignore[arg-type]

    def layers_to_share(self, num_hidden_layers: int) -> list[int]:
        """Returns the candidates, so that most images share passes; a forced layer outside them is read alone.

        So is one that is read through a lens, which need not have others.
        """
        candidates = replace(self, premature_layer=None).layers_to_read(num_hidden_layers)
        own = self.layers_to_read(num_hidden_layers)
        return candidates if self.lens is None and set(own) <= set(candidates) else own

    def numbers(self, layers: Sequence[int]) -> dict[str, float]:
        """Returns log alpha, the index of the premature layer in the stack, -1 to choose it by JSD, and both weights.

        `layers` are the candidates, or others that include a forced layer; without it there is a ValueError.
        """
        stack: list[int | str] = [*layers, "final"]
        premature = -1 if self.premature_layer is None else stack.index(self.premature_layer)
        final_weight, premature_weight = (1.0, 1.0) if self.beta is None else (1.0 + self.beta, self.beta)
        return {
            "log_alpha": log_of(self.alpha),
            "premature": premature,
            "final_weight": final_weight,
            "premature_weight": premature_weight,
        }


def check_alpha(alpha: object) -> float:
    """Returns the plausibility threshold as a float; ValueError: it is no finite number in [0, 1]."""
    value = number("alpha", alpha, " in [0, 1]")
    if not 0 <= value <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {value}")
    return value


def _in_words(layers: str | Sequence[int]) -> str:
    return layers if isinstance(layers, str) else " ".join(map(str, layers))


def _int(value: Any) -> int | None:
    """Returns the value as an int, or None if it is none; numpy's integers are taken, bools are not."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


@dataclass(frozen=True)
class SLEDConfig(Contrast):
    """Self logits evolution decoding (Zhang et al., NeurIPS 2024, arXiv 2411.02433).

    Attributes:
        candidate_layers: the layers whose estimates are mixed, as in Hugging Face's `hidden_states`. "auto" is all of
            1 .. N-1, as its authors read all layers: the method itself weighs them, and needs no choice beforehand.
        evolution_rate: how far the final layer's logits move, 0 .. 1e10; a logit moves by at most this. 0 moves none.
        evolution_scale: k, how many codes take part, >= 1. Others are never drawn, except codes that tie with the k-th.

    Raises:
        ValueError: a value is out of range.
    """

    name: ClassVar[str] = "sled"
    title: ClassVar[str] = "SLED"

    candidate_layers: Literal["auto"] | Sequence[int] = about(
        "auto", "layers that vote for codes; auto is 1 .. N-1.", parse=parse_layers
    )
    evolution_rate: float = about(2.0, "how far logits move towards the layers' votes; 0 is not at all.")
    evolution_scale: int = about(10, "only so many codes, the most probable, can be drawn; for images try 50 or more.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidate_layers", check_layers(self.candidate_layers))
        object.__setattr__(self, "evolution_rate", number("evolution_rate", self.evolution_rate, " >= 0"))
        object.__setattr__(self, "evolution_scale", integer("evolution_scale", self.evolution_scale, 1, MAX_TOP_K))
        if self.evolution_rate < 0:
            raise ValueError(f"evolution_rate must be a finite number >= 0, got {self.evolution_rate:g}")
        if self.evolution_rate > LARGEST:
            raise ValueError(f"evolution_rate must lie in 0 .. {LARGEST:g}, got {self.evolution_rate:g}")

    def summary(self) -> str:
        """Describes the contrast in few words, for people."""
        layers = _in_words(self.candidate_layers)
        return f"SLED rate {self.evolution_rate:g}, top {self.evolution_scale}, layers {layers}"

    def layers_to_read(self, num_hidden_layers: int) -> list[int]:
        """Returns the candidates. ValueError: the model has none of them."""
        layers = range(1, num_hidden_layers) if self.candidate_layers == "auto" else self.candidate_layers
        return sanitize_candidate_layers(layers, num_hidden_layers)

    def numbers(self, layers: Sequence[int]) -> dict[str, float]:
        """Returns the rate and the number of codes."""
        return {"evolution_rate": self.evolution_rate, "evolution_scale": self.evolution_scale}


CONTRASTS: dict[str, type[Contrast]] = {each.name: each for each in (DoLaConfig, SLEDConfig)}
DEFAULT_CONTRAST = DoLaConfig()
BASELINE = DoLaConfig(alpha=0.0, premature_layer="final")  # what the kernels compute where there is no contrast


def check_contrast(contrast: object, name: str = "contrast") -> Contrast | None:
    """Returns a contrast, or None for the baseline; anything else is a ValueError that calls the argument `name`."""
    if not (contrast is None or isinstance(contrast, Contrast)):
        raise ValueError(
            f"{name} must be a contrast such as DoLaConfig(), or None for plain decoding, got {contrast!r}"
        )
    return contrast
