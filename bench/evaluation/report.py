"""Tables of an evaluation in Markdown."""

from typing import Any

from bench.evaluation.grid import exact
from bench.evaluation.metrics import METRICS, Metric, shown
from bench.evaluation.task import ALL_FOUR, CLIP_SCORE

Row = dict[str, Any]


def headline(rows: list[Row]) -> Metric:
    """Returns the one measure to look at first: all attributes right, else CLIP score, else distinct codes."""
    measured = rows[0]["metrics"]
    key = next(key for key in (ALL_FOUR, CLIP_SCORE, "distinct codes") if key in measured)
    return next(metric for metric in METRICS if metric.key == key)


def groups(evaluation: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Returns the cells that share guidance and temperature, the baseline first, with a title."""
    by_key: dict[tuple[float, float], list[Row]] = {}
    for row in evaluation["cells"]:
        # A matched baseline belongs to the cell it is matched to, whose temperature is the group's.
        key = (row["cfg"], row["grid temperature"])
        by_key.setdefault(key, []).append(row)
    return [
        (f"cfg {exact(cfg)}, temperature {exact(temperature)}", rows) for (cfg, temperature), rows in by_key.items()
    ]


def label(row: Row) -> str:
    """Names a cell: "auto, alpha 0.1"."""
    if row["is matched baseline"]:
        of = f"{row['layers']}, alpha {exact(row['alpha'])}"
        if row["match"] is None:
            return f"baseline matched to {of}: no temperature gives its entropy"
        return f"baseline at temperature {row['temperature']:.3g}, matched to {of}"
    if row["is baseline"]:
        return "baseline"
    return f"{row['layers']}, alpha {exact(row['alpha'])}"


def tables(evaluation: dict[str, Any]) -> str:
    """Makes per guidance and temperature a table of scores and one of sharpness and diversity."""
    settings = evaluation["settings"]
    prompts = settings["images"] // settings["parallel_size"]
    parts = [
        f"{settings['images']} images a cell: {settings['parallel_size']} of each of {prompts} prompts, the same prompts "
        f"and seeds in every cell. In brackets 95% confidence intervals, by a bootstrap over prompts; numbers with a "
        f"sign are paired differences: cell minus the baseline of the same cfg and temperature."
    ]
    layers = [
        f"{name}: {', '.join(map(str, indices)) or 'no contrast'}" for name, indices in evaluation["layers"].items()
    ]
    parts.append(f"Candidate layers: {'; '.join(layers)}.")
    parts.append(
        "Entropy and top probability are those of the distributions that codes were drawn from, means over codes; distinct "
        "codes those in all images of a prompt; differing codes the share of positions at which two images of one prompt "
        "differ."
    )
    for title, rows in groups(evaluation):
        scores = [metric for metric in METRICS if metric.key in rows[0]["metrics"] and metric.is_score]
        others = [metric for metric in METRICS if metric.key in rows[0]["metrics"] and not metric.is_score]
        parts.append(f"### {title}")
        if scores:
            parts.append(_scores(rows, scores, headline(rows)))
        parts.append(_others(rows, others))
    return "\n\n".join(parts) + "\n"


def _scores(rows: list[Row], metrics: list[Metric], main: Metric) -> str:
    """Tabulates the baseline's means, and per cell the headline's mean and the differences of all scores."""
    head = [f"{metric.key}{', points' if metric.unit == '%' else ''}" for metric in metrics]
    own = f"{main.key}{', ' + main.unit if main.unit else ''}"
    lines = [_line("", own, *head, f"{head[metrics.index(main)]}, from matched baseline")]
    lines.append("|---" * (len(metrics) + 3) + "|")
    for row in rows:
        statistics = row["metrics"]
        if not statistics:
            lines.append(_line(label(row), *[""] * (len(metrics) + 2)))
            continue
        title, signed = ("value", False) if row["is baseline"] else ("from baseline", True)
        differences = [shown(metric, statistics[metric.key][title], signed) for metric in metrics]
        matched = statistics[main.key].get("from matched")
        last = shown(main, matched, signed=True) if matched else ""
        lines.append(_line(label(row), _mean(main, statistics[main.key]["value"]), *differences, last))
    return "\n".join(lines)


def _others(rows: list[Row], metrics: list[Metric]) -> str:
    """Tabulates means, and differences from the baseline."""
    head = [f"{metric.key}{', ' + metric.unit if metric.unit not in ('', 'codes') else ''}" for metric in metrics]
    lines = [_line("", *head), "|---" * (len(metrics) + 1) + "|"]
    for row in rows:
        cells = []
        for metric in metrics if row["metrics"] else ():
            statistics = row["metrics"][metric.key]
            if row["is baseline"]:
                cells.append(shown(metric, statistics["value"]))
            else:
                difference = shown(metric, statistics["from baseline"], signed=True)
                cells.append(f"{_mean(metric, statistics['value'])} ({difference})")
        lines.append(_line(label(row), *(cells or [""] * len(metrics))))
    return "\n".join(lines)


def _mean(metric: Metric, estimate: dict[str, float]) -> str:
    return f"{metric.scale * estimate['mean']:.{metric.digits}f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
