"""The front as a picture and as tables: right against variety, and the difference at equal variety.

python -m bench.evaluation.front_report     # from bench/results/front/front.json
"""

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import ROOT
from bench.evaluation.figures import check_available
from bench.evaluation.front import EARLY, FOLDER, LENS_SEEDS, Cell
from bench.evaluation.metrics import Bootstrap, Metric, shown
from bench.report.tables import markdown
from janus_dola.arguments import MINI
from janus_dola.images.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, MARKERS = ROOT / "docs" / "evaluation.md", ("<!-- front -->\n", "<!-- end of front -->\n")
FIGURES = {
    "front.png": [(MINI, cfg) for cfg in (1.0, 1.5, 2.0, 5.0)],
    "front_early.png": [(EARLY, cfg) for cfg in (1.0, 5.0)],
}
_NAMES = {MINI: "the mini model", EARLY: "the mini model less trained"}
_PERCENT = Metric("", "%", 1)
# How cells are drawn: colour, marker, whether points are joined.
_STYLES = {
    "temperature": ("#777777", "o", True),
    "truncation": ("#1f77b4", "s", True),
    "DoLa, as in its paper": ("#d62728", "X", False),
    "finite weight, without a lens": ("#ff7f0e", "v", False),
    "finite weight, with a lens": ("#2ca02c", "D", True),
}


class Measured:
    """A cell with its numbers per caption, as shares."""

    def __init__(self, entry: dict[str, Any], images: int) -> None:
        self.cell = Cell(**entry["cell"])
        self.right = np.array(entry["right"]) / images
        self.differing = np.array(entry["differing"])
        self.distance = float(entry["distance"])

    @property
    def kind(self) -> str:
        """Returns which of the styles it has."""
        cell = self.cell
        if cell.layer is None:
            return "truncation" if cell.alpha else "temperature"
        if cell.beta is None:
            return "DoLa, as in its paper"
        return "finite weight, without a lens" if cell.lens is None else "finite weight, with a lens"


def at_equal_variety(cell: Measured, others: Sequence[Measured], bootstrap: Bootstrap) -> np.ndarray | None:
    """Returns how many more images of a cell are right than of others, read between these at the cell's variety.

    First for all captions as they are, then in each resample: [1 + resamples], shares. None where the cell's variety lies
    outside theirs.
    """
    ordered = sorted(others, key=lambda each: float(each.differing.mean()))
    differing, right = (
        [bootstrap.resampled(getattr(each, name)) for each in ordered] for name in ("differing", "right")
    )
    own, variety = bootstrap.resampled(cell.right), bootstrap.resampled(cell.differing)
    if not differing[0][0] <= variety[0] <= differing[-1][0]:
        return None
    columns = zip(variety, np.stack(differing, 1), np.stack(right, 1), strict=True)
    return own - np.array([np.interp(x, np.maximum.accumulate(xs), ys) for x, xs, ys in columns])


def tables(known: Sequence[Measured], bootstrap: Bootstrap) -> str:
    """Makes a table per model and guidance."""
    parts = []
    for (model, cfg), cells in _places(known).items():
        lines = []
        for each in cells:
            right, differing = (_shown(bootstrap.resampled(values)) for values in (each.right, each.differing))
            line = [_label(each.cell), right, differing, f"{each.distance:.3g}"]
            for kind in ("temperature", "truncation"):
                others = _front(cells, kind)
                gain = None if each in others else at_equal_variety(each, others, bootstrap)
                line.append("" if gain is None else _shown(gain, signed=True))
            lines.append(line)
        head = ["", "right, %", "differ, %", "distance", "right, against temperatures", "against truncation"]
        parts.append(f"## cfg {cfg:g}, {_NAMES[model]}\n\n" + markdown(head, lines))
    return "\n\n".join(parts) + "\n"


def short_table(known: Sequence[Measured], bootstrap: Bootstrap) -> str:
    """Makes the table of docs/evaluation.md: a row per model, guidance and lens."""
    lines = []
    for (model, cfg), cells in _places(known).items():
        plain = next(each for each in cells if _label(each.cell) == "plain")
        cooler = _front(cells, "temperature")
        for seed in LENS_SEEDS:
            cell = Cell(model, cfg, 1.0, 0.1, 2, 0.5, seed)
            for each in (each for each in cells if each.cell == cell):
                gain = at_equal_variety(each, cooler, bootstrap)
                varieties, distances = zip(*((x.differing.mean(), x.distance) for x in cooler), strict=True)
                line = [f"{cfg:g}, {_NAMES[model]}" + (f", seed {seed}" if seed else "")]
                line += [f"{100 * x.right.mean():.1f} / {100 * x.differing.mean():.1f}" for x in (plain, each)]
                line.append("" if gain is None else _shown(gain, signed=True))
                line.append(f"{each.distance:.3g} / {np.interp(each.differing.mean(), varieties, distances):.3g}")
                lines.append(line)
    head = [
        "cfg", "plain: right, % / codes that differ, %", "with the lens", "right at equal variety, points",
        "distance with the lens / of a temperature at equal variety",
    ]  # fmt: skip
    return markdown(head, lines)


def figure(known: Sequence[Measured], bootstrap: Bootstrap, places: Sequence[tuple[str, float]]) -> bytes:
    """Draws a panel per model and guidance, as PNG."""
    from matplotlib.figure import Figure

    drawn = Figure((4.2 * len(places), 4.6), layout="constrained")
    axes = drawn.subplots(1, len(places), squeeze=False)[0]
    cells = _places(known)
    for place, axis in zip(places, axes, strict=True):
        _panel(axis, cells.get(place, []), bootstrap)
        axis.set_title(f"cfg {place[1]:g}, {_NAMES[place[0]]}", fontsize=10)
    axes[0].set_ylabel("images right in all four attributes, %")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=110, facecolor="white")
    return content.getvalue()


def _panel(axes: "Axes", cells: Sequence[Measured], bootstrap: Bootstrap) -> None:
    for kind, (colour, marker, joined) in _STYLES.items():
        own = _front(cells, kind) if joined else [each for each in cells if each.kind == kind]
        if not own:
            continue
        x, y = ([100 * float(getattr(each, name).mean()) for each in own] for name in ("differing", "right"))
        spread = [np.percentile(100 * bootstrap.resampled(each.right), [2.5, 97.5]) for each in own]
        errors = np.abs(np.array(spread).T - y)
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "-" if joined else "none"}
        axes.errorbar(x, y, errors, **look, markersize=6, linewidth=1.5, elinewidth=0.7, label=kind)
    axes.set_xlabel("codes that differ between two images\nof a caption, %")
    axes.grid(alpha=0.3, linewidth=0.5)


def _front(cells: Sequence[Measured], kind: str) -> list[Measured]:
    """Returns the cells that a line is drawn through: of truncation with the plain cell, of lenses those of one seed."""
    if kind == "truncation":
        own = [each for each in cells if each.kind in (kind, "temperature") and each.cell.temperature == 1]
    else:
        own = [each for each in cells if each.kind == kind]
    if kind == "finite weight, with a lens":
        line = {"layer": 2, "alpha": 0.1, "temperature": 1.0, "lens": 0}
        own = [each for each in own if line.items() <= vars(each.cell).items()]
    return sorted(own, key=lambda each: float(each.differing.mean()))


def _places(known: Sequence[Measured]) -> dict[tuple[str, float], list[Measured]]:
    places: dict[tuple[str, float], list[Measured]] = {}
    for each in sorted(known, key=lambda each: (each.cell.model != "mini", each.cell.cfg)):
        places.setdefault((each.cell.model, each.cell.cfg), []).append(each)
    order = list(_STYLES)
    return {place: sorted(cells, key=lambda each: order.index(each.kind)) for place, cells in places.items()}


def _label(cell: Cell) -> str:
    said = cell.name.split(f" cfg {cell.cfg:g}")[1].strip()
    return said or "plain"


def _shown(resampled: np.ndarray, signed: bool = False) -> str:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return shown(_PERCENT, {"mean": resampled[0], "low": low, "high": high}, signed)


def main() -> None:
    """Write the tables and figures."""
    check_available()
    record = json.loads((FOLDER / "front.json").read_text(encoding="utf-8"))
    known = [Measured(entry, record["images"]) for entry in record["cells"]]
    bootstrap = Bootstrap(len(known[0].right), resamples=2000)
    text = tables(known, bootstrap)
    write_whole(FOLDER / "tables.md", text.encode())
    print(text)
    page = PAGE.read_text(encoding="utf-8")
    begin, end = (page.index(marker) for marker in MARKERS)
    table = short_table(known, bootstrap)
    write_whole(PAGE, f"{page[: begin + len(MARKERS[0])]}{table}{page[end:]}".encode())
    for name, places in FIGURES.items():
        write_whole(FOLDER / name, figure(known, bootstrap, places))


if __name__ == "__main__":
    main()
