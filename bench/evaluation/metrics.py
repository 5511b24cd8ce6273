"""What is measured, in which units, and how sure it is: means with paired bootstrap intervals.

Prompts are resampled, with all their images, and all cells with the same ones: a difference between two cells is that of the
same prompts and seeds. Intervals are the 2.5th and 97.5th percentile of the resampled means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bench.evaluation.task import ALL_FOUR, CLIP_SCORE
from bench.mini.pictures import ATTRIBUTES

RESAMPLES = 10_000
_AT_ONCE = 1000  # resamples


@dataclass(frozen=True)
class Metric:
    """A measure: its key in a cell's values, and how it is shown."""

    key: str
    unit: str  # "%", "nats", "codes", or "" for a plain number
    digits: int
    is_score: bool = False  # of how well images follow their prompts

    @property
    def scale(self) -> float:
        """Returns what values are multiplied by to be shown."""
        return 100.0 if self.unit == "%" else 1.0


METRICS = (
    *(Metric(name, "%", 1, is_score=True) for name in (*ATTRIBUTES, ALL_FOUR)),
    Metric(CLIP_SCORE, "", 2, is_score=True),
    Metric("entropy", "nats", 4),
    Metric("top probability", "%", 2),
    Metric("distinct codes", "codes", 1),
    Metric("differing codes", "%", 1),
)


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% confidence interval."""

    mean: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """Rounds to six digits, for JSON."""
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()}


def per_prompt(values: Sequence[float], prompts: int) -> np.ndarray:
    """Averages over the images of each prompt: P or P * K numbers, prompt after prompt, to [P] float64."""
    return np.asarray(values, dtype=np.float64).reshape(prompts, -1).mean(1)


class Bootstrap:
    """Means of so many prompts, resampled with replacement; the same resamples for everything asked of one object.

    Args:
        prompts: P.
        seed: of the resamples.
    """

    def __init__(self, prompts: int, seed: int = 0, resamples: int = RESAMPLES) -> None:
        rng = np.random.default_rng(seed)
        # How often each prompt is in each resample: [resamples, P].
        counts = [
            rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(_AT_ONCE, resamples - start))
            for start in range(0, resamples, _AT_ONCE)
        ]
        self._weights = np.concatenate(counts) / prompts

    def resampled(self, values: np.ndarray) -> np.ndarray:
        """Returns the mean of [P] numbers, then that of each resample: [1 + resamples]."""
        return np.concatenate([[values.mean()], self._weights @ values])

    def estimate(self, values: np.ndarray) -> Estimate:
        """Estimates the mean of [P] numbers, or of the differences of two such arrays, and its interval."""
        low, high = np.percentile(self._weights @ values, [2.5, 97.5])
        # Rounded, so that an interval that ends at 0 does.
        return Estimate(*(round(float(value), 12) for value in (values.mean(), low, high)))


def shown(metric: Metric, estimate: Mapping[str, float], signed: bool = False) -> str:
    """Formats it as "97.5 [95.0, 99.2]", in the metric's units."""
    numbers = []
    for name in ("mean", "low", "high"):
        value = round(metric.scale * estimate[name], metric.digits) + 0.0  # no -0.0
        numbers.append(f"{value:{'+' if signed else ''}.{metric.digits}f}")
    return "{} [{}, {}]".format(*numbers)
