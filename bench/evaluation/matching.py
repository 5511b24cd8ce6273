"""The temperature at which the baseline's distributions are as sharp as those of a DoLa cell.

DoLa changes the entropy of what is drawn from; so does a temperature. What DoLa does beyond that shows against a baseline
whose temperature is chosen so that its mean entropy, on the images it draws itself, is that of the DoLa cell.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

LOWEST, HIGHEST = 1 / 64, 16.0  # temperatures looked between
_TOLERANCE = 0.03  # of the target
_TRIES = 15


@dataclass(frozen=True)
class Match:
    """A temperature, and the mean entropies (nats per code) that were asked for and reached at it."""

    temperature: float
    target: float
    reached: float


def match_temperature(entropy_at: Callable[[float], float], target: float) -> Match | None:
    """Finds where a rising entropy meets its target: bisection over the logarithm of the temperature, then interpolation.

    Args:
        entropy_at: mean entropy at a temperature; the first temperatures asked for are the same for every target.
        target: > 0, nats.
    Returns:
        the best temperature tried, as soon as it is within 3% of the target or after 15 tries; None where the target lies
        outside what the temperatures 1/64 and 16 reach.
    """
    entropies = {end: entropy_at(end) for end in (LOWEST, HIGHEST)}
    low, high = LOWEST, HIGHEST
    if not entropies[low] <= target <= entropies[high]:
        return None

    def error(temperature: float) -> float:
        return abs(entropies[temperature] - target)

    while min(map(error, entropies)) > _TOLERANCE * target and len(entropies) < _TRIES:
        between = math.sqrt(low * high) if high > 4 * low else _interpolated(low, high, entropies, target)
        entropies[between] = entropy_at(between)
        low, high = (between, high) if entropies[between] <= target else (low, between)
    best = min(entropies, key=error)
    return Match(best, target, entropies[best])


def _interpolated(low: float, high: float, entropies: dict[float, float], target: float) -> float:
    """Returns a point on the line between two points of log entropy over log temperature, well inside the interval."""
    x = [math.log(low), math.log(high)]
    y = [math.log(max(entropies[temperature], 1e-9)) for temperature in (low, high)]
    share = min(max((math.log(target) - y[0]) / (y[1] - y[0]), 0.15), 0.85)
    return round(math.exp(x[0] + share * (x[1] - x[0])), 4)
