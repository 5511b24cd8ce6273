"""Which layers DoLa contrasts, and how strictly."""

import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from janus_dola.checks import number, several
from janus_dola.kernels.decoding import check_alpha


def about(default: Any, help: str, nothing: str | None = None, parse: Callable[[str], Any] | None = None) -> Any:
    """A field of settings with what those who show it to a user must know, see `janus_dola.settings.Setting`."""
    return field(default=default, metadata={"help": help, "nothing": nothing, "parse": parse})


def parse_layers(text: str) -> list[int] | Literal["auto"]:
    """ "auto", or a comma-separated list of layers.

    Raises:
        ValueError: it is neither.
    """
    if text.strip() == "auto":
        return "auto"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f'candidate_layers must be "auto" or integers separated by commas, got {text!r}') from None


def parse_premature(text: str) -> int | Literal["final"]:
    """ "final", or a layer.

    Raises:
        ValueError: it is neither.
    """
    if text == "final":
        return "final"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'premature_layer must be an integer or "final", got {text!r}') from None


def auto_candidate_layers(num_hidden_layers: int) -> list[int]:
    """Every second of the last eight blocks below the final one: 30 blocks give 22, 24, 26, 28."""
    return [layer for layer in range(num_hidden_layers - 8, num_hidden_layers, 2) if layer >= 1]


def sanitize_candidate_layers(layers: Sequence[int], num_hidden_layers: int) -> list[int]:
    """The layers that can be contrasted with the final one, ascending and without repetition.

    Args:
        layers: indices as in Hugging Face's `hidden_states`: 0 is the embeddings, j the output of block j.
        num_hidden_layers: N, the number of blocks; N itself is the final layer.
    Returns:
        those of 1 .. N-1. Others are dropped with one warning.
    Raises:
        ValueError: none is left.
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
class DoLaConfig:
    """Decoding by contrasting layers (Chuang et al., ICLR 2024, arXiv 2309.03883).

    Attributes:
        candidate_layers: "auto" (see `auto_candidate_layers`) or layer indices as in Hugging Face's `hidden_states`.
        alpha: threshold of the adaptive plausibility constraint, in [0, 1]: codes with less than alpha times the top
            probability of the final layer are never drawn.
        premature_layer: None contrasts with the candidate that diverges most, chosen for each image and token; an integer
            always with that layer (DoLa-static); "final" with none, which leaves the plain distribution on the plausible
            codes, and with alpha = 0 the baseline exactly.

    Raises:
        ValueError: a value is out of range.
    """

    candidate_layers: Literal["auto"] | Sequence[int] = about(
        "auto",
        "Layers to choose from, 1 .. N-1 of a model with N blocks (`janus-dola info` tells N): 2,4,6. "
        "auto is every second of the last eight below the final one: N-8, N-6, N-4 and N-2.",
        parse=parse_layers,
    )
    alpha: float = about(
        0.1, "0 .. 1: codes with less than ALPHA times the top probability of the final layer are never drawn."
    )
    premature_layer: int | Literal["final"] | None = about(
        None,
        "Always contrast with this layer, 1 .. N-1; final contrasts with none.",
        "the candidate that differs most, by JSD",
        parse_premature,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("alpha", self.alpha, " in [0, 1]"))
        check_alpha(self.alpha)
        layers, forced = self.candidate_layers, self.premature_layer
        if not (isinstance(layers, str) and layers == "auto"):
            whole = [_int(layer) for layer in several(layers) or ()]
            if not whole or None in whole:
                raise ValueError(f'candidate_layers must be "auto" or a list of ints, got {layers!r}')
            object.__setattr__(self, "candidate_layers", tuple(whole))
        if forced is not None and forced != "final":
            if _int(forced) is None:
                raise ValueError(f'premature_layer must be None, "final" or an int, got {forced!r}')
            object.__setattr__(self, "premature_layer", _int(forced))

    def summary(self) -> str:
        """The contrast in few words, for people."""
        if self.premature_layer == "final":
            return f"no contrast, alpha {self.alpha:g}"
        if self.premature_layer is not None:
            return f"DoLa alpha {self.alpha:g}, layer {self.premature_layer}"
        layers = self.candidate_layers
        return f"DoLa alpha {self.alpha:g}, layers {layers if isinstance(layers, str) else ' '.join(map(str, layers))}"

    def layers_to_read(self, num_hidden_layers: int) -> list[int]:
        """The layers below the final one whose distribution is needed: none for "final", one for a static layer.

        Raises:
            ValueError: the layers named do not exist in a model of `num_hidden_layers` blocks.
        """
        if self.premature_layer == "final":
            return []
        if self.premature_layer is not None:
            if not 1 <= self.premature_layer <= num_hidden_layers - 1:
                raise ValueError(
                    f'premature_layer must lie in 1 .. {num_hidden_layers - 1}, or be "final" or None, '
                    f"got {self.premature_layer}"
                )
            return [self.premature_layer]
        layers = self.candidate_layers
        if isinstance(layers, str):
            layers = auto_candidate_layers(num_hidden_layers)
        return sanitize_candidate_layers(layers, num_hidden_layers)


def _int(value: Any) -> int | None:
    """The value as an int, if it is one; numpy's are, too, and bools are none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
