"""Plots of a record: neutral grey text on a transparent ground, for white pages and dark ones."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

from bench.report.records import Record, Row
from bench.report.tables import NOT_MEASURED
from bench.speed import floor
from janus_dola.images.whole_files import write_whole

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

GREY = "#808890"
COLOURS = {
    "reference": "#e0565b", "torch": "#4c8dd6", "torch, compiled": "#8a6fd1", "triton": "#2fa36b",
    "ours": "#2fa36b", "plain loop": "#e0565b", "transformers": "#d98c2b",
}  # fmt: skip
STYLE = {
    "svg.hashsalt": "janus-dola", "font.size": 11, "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY,
    "xtick.color": GREY, "ytick.color": GREY, "axes.spines.top": False, "axes.spines.right": False, "grid.color": GREY,
    "grid.alpha": 0.25, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


def _lines(axes: Axes, rows: list[Row], x: Callable[[Row], float]) -> None:
    """Draws a line per backend with quartiles, and the floor; times in milliseconds."""
    axes.set_ylabel("time of one call, ms")
    if not rows:
        axes.text(0.5, 0.5, NOT_MEASURED, transform=axes.transAxes, ha="center")
        return
    for backend in dict.fromkeys(row.facts["backend"] for row in rows):
        mine = sorted((row for row in rows if row.has(backend=backend)), key=x)
        times = [1e3 * row.median for row in mine]
        bars = [[1e3 * (row.median - row.low) for row in mine], [1e3 * (row.high - row.median) for row in mine]]
        axes.errorbar(
            [x(row) for row in mine], times, bars, marker="o", capsize=3, color=COLOURS[backend], label=backend
        )
    floors = {x(row): 1e3 * row.floor for row in rows if row.floor}
    axes.plot(*zip(*sorted(floors.items()), strict=True), linestyle="--", color=GREY, label="floor")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(floors), [f"{value:g}" for value in sorted(floors)])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()


def _stage(record: Record, **facts: object) -> list[Row]:
    dtype = "bfloat16" if record.on_gpu else "float32"
    return [
        row for row in record.select("test_head_stage", dtype=dtype, **facts) if "eager" not in row.facts["backend"]
    ]


def latency_by_images(record: Record, axes: Axes) -> None:
    _lines(axes, _stage(record, shape="1B", candidates=4), lambda row: row.facts["images"])
    axes.set_xlabel("images at once")
    axes.set_title("Head stage of the 1B shape, 5 layers")


def cost_by_candidates(record: Record, axes: Axes) -> None:
    _lines(axes, _stage(record, shape="1B", images=4), lambda row: row.facts["candidates"])
    axes.set_xlabel("candidate layers")
    axes.set_title("Head stage of the 1B shape, 4 images")


def cost_by_vocabulary(record: Record, axes: Axes) -> None:
    rows = [row for row in _stage(record, images=1, candidates=4) if row.facts["shape"].startswith("2048 x")]
    _lines(axes, rows, lambda row: floor.SHAPES[row.facts["shape"]].codes)
    axes.set_xlabel("codes in the vocabulary")
    axes.set_title("One-matrix head, hidden size 2048, 5 layers, 1 image")


def images_per_second(record: Record, axes: Axes) -> None:
    rows = record.select("test_image")[::-1]
    speeds = [row.facts["images"] / row.median for row in rows]
    colours = [COLOURS[row.facts["loop"].split(",")[0]] for row in rows]
    labels = [
        f"{row.facts['model']}, {row.facts['images']} at once: {row.facts['loop']}, window {row.facts['window']}, "
        f"{row.facts['way']}"
        for row in rows
    ]
    bars = axes.barh(labels, speeds, color=colours)
    axes.bar_label(bars, [f"{speed:.3g}" for speed in speeds], padding=4, color=GREY)
    axes.margins(x=0.15)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("images a second")
    axes.set_title("Whole images")


PLOTS = (latency_by_images, cost_by_candidates, cost_by_vocabulary, images_per_second)


def draw(record: Record, folder: Path, name: str, ending: str = "svg") -> list[Path]:
    """Writes all plots of a record as `{name}_{plot}.{ending}`."""
    return [_drawn(partial(plot, record), folder / f"{name}_{plot.__name__}.{ending}") for plot in PLOTS]


def learning(runs: list[dict], path: Path) -> Path:
    """Writes how often the images of `examples/grpo.py` are right: at both ends of each run, and in each step."""

    def plot(axes: Axes) -> None:
        for run in runs:
            own = [step["right"] for step in run["steps"]]
            means = [sum(own[max(0, i - 4) : i + 1]) / len(own[max(0, i - 4) : i + 1]) for i in range(len(own))]
            (line,) = axes.plot(range(1, len(own) + 1), means, label=f"seed {run['seed']}, mean of five steps")
            ends = {int(step): right for step, right in run["right"].items()}
            axes.plot(list(ends), list(ends.values()), "o", color=line.get_color())
        axes.set_xlabel("step")
        axes.set_ylabel("share of right images")
        axes.set_title("The mini model without guidance, trained by GRPO")
        axes.legend()

    return _drawn(plot, path)


def _drawn(plot: Callable[[Axes], None], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        plot(axes)
        metadata, content = {"Date": None} if path.suffix == ".svg" else None, io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], transparent=True, metadata=metadata, dpi=110)
        write_whole(path, content.getvalue())
        plt.close(figure)
    return path
