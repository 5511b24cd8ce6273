"""How a code is chosen, in plain numbers. This module does not import torch, so that settings are checked quickly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

SMALLEST_TEMPERATURE = 1e-6
# The largest number in any setting. Float32 ends at 3.4e38, and has to hold the square of a guided logit, and scores divided
# by the smallest temperature.
LARGEST = 1e10
MAX_TOP_K = 2**31 - 1
LARGEST_WEIGHT = 1000.0  # of a layer in a contrast: its product with any logarithm is a finite float32


def log_of(alpha: float) -> float:
    """Returns log alpha; -inf for 0."""
    return math.log(alpha) if alpha > 0 else -math.inf


class Kind(NamedTuple):
    """What decides which kernels run."""

    method: str
    rows: int  # of an image
    truncates: bool


@dataclass(frozen=True)
class SamplingParams:
    """How a code is chosen from the layers read, for one image.

    Attributes:
        method: how the layers are contrasted, a key of `kernels.contrast.METHODS`.
        contrast: the method's own numbers by name: ints and floats.
        cfg_weight: w of classifier-free guidance, in -1e10 .. 1e10. None: no guidance, and every row is an image.
        temperature: T: 0 is greedy, otherwise in 1e-6 .. 1e10. Below that, rounding of F outweighs the noise.
        top_k: how many codes are drawn from, the most probable ones; 0 for all.
        top_p: share of softmax(F / T) that the codes drawn from hold, in (0, 1]; 1 for all. See `reference.truncate`.

    Raises:
        ValueError: a value is out of range.
    """

    method: str
    contrast: Mapping[str, float] = field(hash=False)
    cfg_weight: float | None = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.cfg_weight is not None and not math.isfinite(self.cfg_weight):
            raise ValueError(f"cfg_weight must be a finite number, got {self.cfg_weight}")
        if self.cfg_weight is not None and abs(self.cfg_weight) > LARGEST:
            raise ValueError(f"cfg_weight must lie in {-LARGEST:g} .. {LARGEST:g}, got {self.cfg_weight}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a finite number >= 0 (0 is greedy), got {self.temperature}")
        if 0 < self.temperature < SMALLEST_TEMPERATURE:
            raise ValueError(
                f"temperature must be 0 (greedy) or at least {SMALLEST_TEMPERATURE}, got {self.temperature}"
            )
        if self.temperature > LARGEST:
            raise ValueError(
                f"temperature must be 0 or lie in {SMALLEST_TEMPERATURE} .. {LARGEST:g}, got {self.temperature}"
            )
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k must be an int in 0 .. {MAX_TOP_K} (0 keeps all), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    @property
    def rows(self) -> int:
        """Returns how many rows an image has: with and without its words, or the first alone where nothing guides."""
        return 1 if self.cfg_weight is None else 2

    @property
    def truncates(self) -> bool:
        """Returns whether top-k or top-p leaves codes out."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def kind(self) -> Kind:
        """Returns what decides which kernels run: images of equal kind can share a pass."""
        return Kind(self.method, self.rows, self.truncates)
