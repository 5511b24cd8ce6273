"""How a token is chosen, in plain numbers. Importing it does not import torch, so that settings are checked quickly."""

import math
from collections.abc import Hashable
from dataclasses import dataclass

SMALLEST_TEMPERATURE = 1e-6
MAX_TOP_K = 2**31 - 1


def check_alpha(alpha: float) -> None:
    """Raises ValueError where the plausibility threshold lies outside [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")


def log_of(alpha: float) -> float:
    """log alpha; -inf for 0."""
    return math.log(alpha) if alpha > 0 else -math.inf


@dataclass(frozen=True)
class SamplingParams:
    """How a token is chosen from the stack of layers.

    Attributes:
        cfg_weight: w of classifier-free guidance, finite. None: there is none, and every row is an image of its own.
        temperature: T, at least 1e-6, or 0 for greedy: with less the scores' last bits would decide, not the noise.
        alpha: threshold of the adaptive plausibility constraint, in [0, 1]; 0 admits every code.
        premature: index into the stack of the layer to contrast with; None takes the one with the largest JSD, and the
            index of the last (the final layer) means no contrast.
        top_k: codes to draw from, the most probable ones; 0 for all.
        top_p: share of softmax(F / T) that the codes drawn from hold, in (0, 1]; 1 for all. See `reference.truncate`.

    Raises:
        ValueError: a value is out of range.
    """

    cfg_weight: float | None = 5.0
    temperature: float = 1.0
    alpha: float = 0.1
    premature: int | None = None
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.cfg_weight is not None and not math.isfinite(self.cfg_weight):
            raise ValueError(f"cfg_weight must be a finite number, got {self.cfg_weight}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0 (0 is greedy), got {self.temperature}")
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise ValueError(
                f"temperature must be 0 (greedy) or at least {SMALLEST_TEMPERATURE}, got {self.temperature}"
            )
        check_alpha(self.alpha)
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k must be an int in 0 .. {MAX_TOP_K} (0 keeps all), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    @property
    def truncates(self) -> bool:
        """Whether some plausible codes are not drawn."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def kind(self) -> Hashable:
        """What of it decides which kernels run: images of one kind can share a pass."""
        return self.cfg_weight is None, self.truncates
