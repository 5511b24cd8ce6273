"""Which layers DoLa contrasts, and how strictly."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from janus_dola.checks import number
from janus_dola.kernels.types import Decoding, check_alpha


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

    candidate_layers: Literal["auto"] | Sequence[int] = "auto"
    alpha: float = 0.1
    premature_layer: int | Literal["final"] | None = None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if isinstance(self.candidate_layers, str):
            if self.candidate_layers != "auto":
                raise ValueError(f'candidate_layers must be "auto" or a list of ints, got {self.candidate_layers!r}')
        else:
            layers = tuple(self.candidate_layers)
            if not layers or not all(_is_int(layer) for layer in layers):
                raise ValueError(f'candidate_layers must be "auto" or a list of ints, got {self.candidate_layers!r}')
            object.__setattr__(self, "candidate_layers", layers)
        if not (self.premature_layer is None or self.premature_layer == "final" or _is_int(self.premature_layer)):
            raise ValueError(f'premature_layer must be None, "final" or an int, got {self.premature_layer!r}')

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


def decoding_of(layers: tuple[int, ...], dola: DoLaConfig | None, cfg_weight: float, temperature: float) -> Decoding:
    """How the codes of an image are chosen in passes that read these layers and the final one.

    Args:
        layers: the candidates of the image, or any others with its forced layer among them.
        dola: None is the plain baseline, which is the final layer without a plausibility constraint.
    Raises:
        ValueError: a value is out of range.
    """
    alpha, forced = (0.0, "final") if dola is None else (dola.alpha, dola.premature_layer)
    stack: tuple[int | str, ...] = (*layers, "final")
    return Decoding(
        number("cfg_weight", cfg_weight),
        number("temperature", temperature, " >= 0 (0 is greedy)"),
        alpha,
        None if forced is None else stack.index(forced),
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
