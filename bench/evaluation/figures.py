"""Figures of an evaluation: heat maps, scores against alpha, scores against entropy, and layers over the raster."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.evaluation.grid import exact
from bench.evaluation.metrics import METRICS, Metric
from bench.evaluation.report import Row, groups, headline
from janus_dola.arguments import import_extra
from janus_dola.images.layer_map import colour_of_layer, heat
from janus_dola.images.whole_files import write_whole
from janus_dola.kernels.contrast import LN2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_MARKERS = "os^Dv"  # one for each set of layers
_POINTS_SHOWN = 20.0  # percentage points at which the colours of the heat maps end
_GREY = "#555555"
_LEAST_WIDTH, _LEAST_HEIGHT = 9.0, 2.6  # inches: room for titles and colour bars


def check_available() -> None:
    """Raises ValueError where matplotlib is not installed."""
    import_extra("matplotlib", "plot", "drawing figures")


def draw_figures(evaluation: dict[str, Any], outdir: Path) -> list[Path]:
    """Writes all figures that the grid has something for, as PNG on white.

    Raises:
        ValueError: matplotlib is not installed.
    """
    check_available()
    outdir.mkdir(parents=True, exist_ok=True)
    drawn = {
        "heat_maps.png": _heat_maps(evaluation),
        "alpha.png": _against_alpha(evaluation),
        "entropy.png": _against_entropy(evaluation),
        "layers.png": _layers(evaluation),
    }
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            written.append(outdir / name)
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=110, facecolor="white")
            write_whole(written[-1], content.getvalue())
    return written


def _figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, np.ndarray]":
    from matplotlib.figure import Figure  # draws without a display, and leaves pyplot's state alone

    figure = Figure((max(columns * width, _LEAST_WIDTH), max(rows * height, _LEAST_HEIGHT)), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _colours(evaluation: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Returns a colour for each layer set, told apart with any kind of colour vision."""
    names = list(evaluation["layers"])
    return {name: _rgb(i) for i, name in enumerate(names)}


def _rgb(layer: int) -> tuple[float, ...]:
    """Returns the colour of a layer in maps, as matplotlib takes it."""
    return tuple(value / 255 for value in colour_of_layer(layer))


def _axis_label(metric: Metric) -> str:
    if metric.key == "differing codes":
        return "codes that differ between\nimages of a prompt, %"
    return f"{metric.key} right, %" if metric.is_score and metric.unit == "%" else _with_unit(metric)


def _with_unit(metric: Metric) -> str:
    return f"{metric.key}, {metric.unit}" if metric.unit and metric.unit not in metric.key else metric.key


def _cells(rows: list[Row]) -> list[Row]:
    """Returns the cells of the grid, without matched baselines."""
    return [row for row in rows if not row["is matched baseline"]]


def _row_of(rows: list[Row], layers: str, alpha: float) -> Row:
    """Returns the cell of these settings."""
    return next(row for row in _cells(rows) if (row["layers"], row["alpha"]) == (layers, alpha))


def _heat_maps(evaluation: dict[str, Any]) -> "Figure":
    """Draws a panel per score (without scores: per measure of diversity) and per guidance and temperature."""
    grouped = groups(evaluation)
    metrics = [metric for metric in METRICS if metric.key in grouped[0][1][0]["metrics"]]
    metrics = [metric for metric in metrics if metric.is_score] or metrics
    layers, alphas = list(evaluation["layers"]), evaluation["grid"]["alpha"]
    figure, axes = _figure(len(grouped), len(metrics), 0.62 * len(alphas) + 0.5, 0.42 * len(layers) + 1.0)
    for j, metric in enumerate(metrics):
        grids = [
            [[_difference(_row_of(rows, name, alpha), metric) for alpha in alphas] for name in layers]
            for _, rows in grouped
        ]
        limit = _POINTS_SHOWN if metric.unit == "%" else _largest(grids)
        for i, (title, _) in enumerate(grouped):
            last = _heat_map(axes[i, j], grids[i], metric, limit)
            axes[i, j].set_title(f"{metric.key}\n{title}" if j == 0 else f"{metric.key}\n", fontsize=9)
            axes[i, j].set_xticks(range(len(alphas)), [exact(alpha) for alpha in alphas], fontsize=8)
            axes[i, j].set_yticks(range(len(layers)), layers if j == 0 else [""] * len(layers), fontsize=8)
            axes[i, j].set_xlabel("alpha", fontsize=8)
            if j == 0:
                axes[i, j].set_ylabel("candidate layers", fontsize=8)
        if j == len(metrics) - 1 or metrics[j + 1].unit != metric.unit:  # one bar for all panels of a unit before it
            first = next(k for k in range(j + 1) if all(other.unit == metric.unit for other in metrics[k : j + 1]))
            bar = figure.colorbar(last, ax=axes[:, first : j + 1], extend="both", shrink=0.8, pad=0.01)
            bar.set_label("percentage points" if metric.unit == "%" else metric.unit or metric.key, fontsize=8)
            bar.ax.tick_params(labelsize=8)
    figure.suptitle(
        "Difference from the baseline of the same cfg and temperature; bold where the 95% interval leaves out 0",
        fontsize=10,
    )
    return figure


def _difference(row: Row, metric: Metric) -> tuple[float, bool]:
    """Returns a cell's difference from its baseline, in units shown, and whether its interval leaves out 0."""
    if row["is baseline"]:
        return 0.0, False
    estimate = row["metrics"][metric.key]["from baseline"]
    return metric.scale * estimate["mean"], estimate["low"] > 0 or estimate["high"] < 0


def _largest(grids: list[list[list[tuple[float, bool]]]]) -> float:
    return max(abs(difference) for grid in grids for line in grid for difference, _ in line) or 1.0


def _heat_map(axes: "Axes", grid: list[list[tuple[float, bool]]], metric: Metric, limit: float) -> Any:
    numbers = np.array([[difference for difference, _ in line] for line in grid])
    picture = axes.imshow(numbers, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for y, line in enumerate(grid):
        for x, cell in enumerate(line):
            difference, sure = cell
            digits = 0 if abs(difference) >= 10 else metric.digits
            axes.text(
                x, y, f"{difference:+.{digits}f}" if difference else "0", ha="center", va="center", fontsize=7.5,
                color="white" if abs(difference) > 0.6 * limit else "black", weight="bold" if sure else "normal",
            )  # fmt: skip
    return picture


def _bars(estimate: dict[str, float], scale: float) -> tuple[float, list[list[float]]]:
    """Returns a mean and how far its interval reaches down and up, as errorbar takes them."""
    mean = estimate["mean"]
    return scale * mean, [
        [scale * max(0.0, mean - estimate["low"])],
        [scale * max(0.0, estimate["high"] - mean)],
    ]


def _against_alpha(evaluation: dict[str, Any]) -> "Figure | None":
    alphas = sorted(evaluation["grid"]["alpha"])
    if len(alphas) < 2:
        return None
    grouped, colours = groups(evaluation), _colours(evaluation)
    metric = headline(grouped[0][1])
    figure, axes = _figure(1, len(grouped), 5.2, 4.0)
    for panel, (title, rows) in zip(axes[0], grouped, strict=True):
        baseline = rows[0]["metrics"][metric.key]["value"]
        low, high = metric.scale * baseline["low"], metric.scale * baseline["high"]
        panel.axhspan(low, high, color=_GREY, alpha=0.15, linewidth=0)
        panel.axhline(metric.scale * baseline["mean"], color=_GREY, linestyle="--", label="baseline")
        for i, (name, colour) in enumerate(colours.items()):
            x = np.arange(len(alphas)) + 0.09 * (i - (len(colours) - 1) / 2)
            cells = [_row_of(rows, name, alpha) for alpha in alphas]
            shown = [
                (place, *_bars(cell["metrics"][metric.key]["value"], metric.scale))
                for place, cell in zip(x, cells, strict=True)
            ]
            panel.plot([place for place, *_ in shown], [mean for _, mean, _ in shown], color=colour, linewidth=1)
            for k, (place, mean, reach) in enumerate(shown):
                panel.errorbar(
                    place, mean, reach, color=colour, marker=_MARKERS[i], markersize=5, capsize=2,
                    linewidth=1, label=_set_label(evaluation, name) if k == 0 else None,
                )  # fmt: skip
        panel.set_xticks(range(len(alphas)), [exact(alpha) for alpha in alphas])
        panel.set_xlabel("alpha, the plausibility threshold")
        panel.set_ylabel(_axis_label(metric))
        panel.set_title(title, fontsize=10)
        panel.grid(axis="y", alpha=0.3)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(colours) + 1, fontsize=8
    )
    figure.suptitle(f"{_axis_label(metric)}, with 95% intervals", fontsize=11)
    return figure


def _set_label(evaluation: dict[str, Any], name: str) -> str:
    layers = ", ".join(map(str, evaluation["layers"][name]))
    return f"{name} ({layers})" if layers else f"{name} (no contrast)"


def _against_entropy(evaluation: dict[str, Any]) -> "Figure | None":
    """Draws whether a cell does better, or is more diverse, than plain decoding that is as sharp."""
    grouped = groups(evaluation)
    if not any(row["match"] for row in evaluation["cells"]):
        return None
    keys = (headline(grouped[0][1]).key, "differing codes")
    metrics = [metric for metric in METRICS if metric.key in keys and metric.key in grouped[0][1][0]["metrics"]]
    figure, axes = _figure(len(metrics), len(grouped), 5.2, 3.4)
    for line, metric in zip(axes, metrics, strict=True):
        for panel, (title, rows) in zip(line, grouped, strict=True):
            _panel_against_entropy(panel, rows, metric, evaluation)
            panel.set_title(title, fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel("mean entropy of the distributions drawn from, nats per code")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), fontsize=8)
    figure.suptitle(
        "Against sharpness: DoLa (the larger the mark, the larger alpha) and plain decoding at other temperatures",
        fontsize=11,
    )
    return figure


def _panel_against_entropy(panel: "Axes", rows: list[Row], metric: Metric, evaluation: dict[str, Any]) -> None:
    plain = sorted(_point(row, metric) for row in rows if row["match"] or row["is baseline"])
    panel.plot(*np.array(plain).T, color=_GREY, marker="x", linewidth=1.2, label="baseline, by temperature")
    for i, (name, colour) in enumerate(_colours(evaluation).items()):
        cells = [row for row in _cells(rows) if row["layers"] == name and not row["is baseline"]]
        cells.sort(key=lambda row: row["alpha"])
        x, y = np.array([_point(row, metric) for row in cells]).reshape(-1, 2).T
        sizes = [16 + 16 * sorted(evaluation["grid"]["alpha"]).index(row["alpha"]) for row in cells]
        panel.plot(x, y, color=colour, linewidth=0.7, alpha=0.6)
        panel.scatter(
            x, y, sizes, color=colour, marker=_MARKERS[i], alpha=0.8, linewidth=0, label=_set_label(evaluation, name)
        )
    panel.set_xscale("log")
    panel.set_ylabel(_axis_label(metric))
    panel.grid(alpha=0.3)


def _point(row: Row, metric: Metric) -> tuple[float, float]:
    statistics = row["metrics"]
    return statistics["entropy"]["value"]["mean"], metric.scale * statistics[metric.key]["value"]["mean"]


def _layers(evaluation: dict[str, Any]) -> "Figure | None":
    """Draws per set of layers how often each was chosen at each position, and the JSD there; over all cells."""
    pooled = {name: pool for name in evaluation["layers"] if (pool := _pooled(evaluation, name)) is not None}
    if not pooled:
        return None
    columns = max(len(counts) for _, counts, _ in pooled.values())
    figure, axes = _figure(len(pooled), columns + 1, 2.3, 2.5)
    mean_jsd = {name: jsd.sum(0) / counts.sum(0) for name, (_, counts, jsd) in pooled.items()}
    for line, (name, (layers, counts, jsd)) in zip(axes, pooled.items(), strict=True):
        share, of_layer = counts / counts.sum(0), counts.sum(1)
        for slot, panel in enumerate(line[:-1]):
            panel.set_axis_off()
            if slot < len(layers):
                panel.set_axis_on()
                for spine in panel.spines.values():  # its colour in layer maps
                    spine.set(color=_rgb(layers[slot]), linewidth=3)
                own = jsd[slot].sum() / of_layer[slot] if of_layer[slot] else math.nan
                title = f"layer {layers[slot]}: {of_layer[slot] / of_layer.sum():.1%}\nJSD {own:.2f} nats where chosen"
                shares = _raster(panel, 100 * share[slot], title, "viridis", 100)
        divergences = _raster(
            line[-1], mean_jsd[name], f"mean JSD {jsd.sum() / counts.sum():.2f} nats", _jsd_map(), LN2
        )
        line[0].set_ylabel(f"{name}\nraster row", fontsize=8)
        line[0].set_xlabel("raster column", fontsize=8)
    for picture, part, unit in (
        (shares, axes[:, :-1], "chosen at this position, % of images"),
        (divergences, axes[:, -1:], "its JSD, nats (at most ln 2)"),
    ):
        bar = figure.colorbar(picture, ax=part, location="bottom", shrink=0.5, aspect=30, pad=0.02)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle("Which layer was contrasted with, where in the image, and how far it diverged", fontsize=11)
    return figure


def _pooled(evaluation: dict[str, Any], name: str) -> tuple[list[int], np.ndarray, np.ndarray] | None:
    """Sums counts [L, T] and JSD [L, T] of all cells with a set of layers; None where there is no contrast."""
    rasters = [
        row["raster"] for row in _cells(evaluation["cells"]) if row["layers"] == name and row["raster"]["layers"]
    ]
    if not rasters:
        return None
    counts, jsd = (np.sum([raster[key] for raster in rasters], axis=0) for key in ("counts", "jsd"))
    return rasters[0]["layers"], counts, jsd


def _jsd_map() -> "Colormap":
    """Returns the colours of divergences in layer maps, here in proportion: means do not crowd at ln 2."""
    from matplotlib.colors import ListedColormap

    return ListedColormap([[part / 255 for part in heat(level / 255)] for level in range(256)], "jsd")


def _raster(
    panel: "Axes", values: Sequence[float] | np.ndarray, title: str, colours: "str | Colormap", top: float
) -> Any:
    side = math.isqrt(len(values))
    picture = panel.imshow(np.reshape(values, (side, side)), cmap=colours, vmin=0, vmax=top)
    panel.set_title(title, fontsize=8)
    panel.set_xticks([0, side - 1], ["1", str(side)], fontsize=7)
    panel.set_yticks([0, side - 1], ["1", str(side)], fontsize=7)
    return picture
