"""The grid of an evaluation: which cells are drawn, and what each is compared with."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from janus_dola.contrasts import DoLaConfig, auto_candidate_layers, sanitize_candidate_layers
from janus_dola.settings import DrawSettings

LAYER_SETS = ("auto", "early", "late", "random", "final")


def layer_set(name: str, num_layers: int, seed: int) -> list[int]:
    """Returns the candidate layers of a name of `LAYER_SETS` in a model of N = `num_layers` blocks, ascending.

    auto    the default of `DoLaConfig`, n layers
    early   the first n blocks: 1 .. n
    late    the last n below the final one: N-n .. N-1
    random  n of 1 .. N-1, drawn once from the evaluation's seed and the same in all its cells
    final   none: no contrast, plausibility (alpha) alone
    """
    auto = sanitize_candidate_layers(auto_candidate_layers(num_layers), num_layers)
    below = range(1, num_layers)
    return {
        "auto": auto,
        "early": list(below[: len(auto)]),
        "late": list(below[-len(auto) :]),
        "random": sorted(random.Random(seed).sample(below, len(auto))),
        "final": [],
    }[name]


def exact(value: float) -> str:
    """Formats a number as briefly as it can be said, and never the same for two numbers."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


@dataclass(frozen=True)
class Cell:
    """One setting of the grid. `layers` is a name of `LAYER_SETS`; "final" with alpha 0 is the baseline."""

    layers: str
    alpha: float
    cfg: float
    temperature: float

    @property
    def name(self) -> str:
        """Names the cell's files: "auto-alpha0.1-cfg5-t1"."""
        what = "baseline" if self.is_baseline else f"{self.layers}-alpha{exact(self.alpha)}"
        return f"{what}-cfg{exact(self.cfg)}-t{exact(self.temperature)}"

    @property
    def is_baseline(self) -> bool:
        """Says whether it is plain decoding."""
        return self.layers == "final" and self.alpha == 0

    @property
    def baseline(self) -> "Cell":
        """Returns the baseline of the same guidance and temperature, which it is compared with."""
        return Cell("final", 0.0, self.cfg, self.temperature)

    def settings(self, num_layers: int, seed: int) -> DrawSettings:
        """Returns the settings it stands for in a model of `num_layers` blocks."""
        dola: DoLaConfig | None = None
        if self.layers != "final":
            dola = DoLaConfig(layer_set(self.layers, num_layers, seed), self.alpha)
        elif not self.is_baseline:
            dola = DoLaConfig(alpha=self.alpha, premature_layer="final")
        return DrawSettings(self.cfg, self.temperature, dola)


@dataclass(frozen=True)
class Grid:
    """The values of each setting; what is not named has DoLa's defaults.

    Raises:
        ValueError: a value is out of range or named twice.
    """

    layers: tuple[str, ...] = ("auto",)
    alpha: tuple[float, ...] = (0.1,)
    cfg: tuple[float, ...] = (5.0,)
    temperature: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            if len(set(values)) < len(values):
                raise ValueError(f"grid must name each value of {field.name} once, got {_listed(values)}")
        unknown = [name for name in self.layers if name not in LAYER_SETS]
        if unknown:
            raise ValueError(f"layers must be of {', '.join(LAYER_SETS)}, got {_listed(unknown)}")
        for alpha, cfg, temperature in itertools.product(self.alpha, self.cfg, self.temperature):
            DrawSettings(cfg, temperature, DoLaConfig(alpha=alpha))  # says what is out of range

    def cells(self) -> list[Cell]:
        """Lists every cell once, each after the baseline it is compared with."""
        product = itertools.product(self.cfg, self.temperature, self.layers, self.alpha)
        cells = [Cell(layers, alpha, cfg, temperature) for cfg, temperature, layers, alpha in product]
        return list(dict.fromkeys(each for cell in cells for each in (cell.baseline, cell)))


def _listed(values: Sequence) -> str:
    return ",".join(exact(value) if isinstance(value, float) else str(value) for value in values)


def parse_grid(words: Sequence[str]) -> Grid:
    """Reads words such as "alpha=0,0.1" and "layers=auto,final"; one string may hold several.

    Raises:
        ValueError: a word is not of that form, a key is unknown or named twice, or a value is wrong.
    """
    known = [field.name for field in fields(Grid)]
    axes: dict[str, tuple] = {}
    for word in " ".join(words).split():
        key, separator, text = word.partition("=")
        if not separator or key not in known:
            raise ValueError(f"grid must be of KEY=VALUE,VALUE,... with KEY of {', '.join(known)}, got {word!r}")
        if key in axes:
            raise ValueError(f"grid must name {key} once, got it again in {word!r}")
        values = text.split(",")
        try:
            axes[key] = tuple(values) if key == "layers" else tuple(map(float, values))
        except ValueError:
            raise ValueError(f"{key} must be numbers separated by commas, got {text!r}") from None
    return Grid(**axes)
