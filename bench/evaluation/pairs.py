"""Differences between two cells of the evaluation that its tables do not have, by the same paired bootstrap.

python -m bench.evaluation.pairs --collect    # after `make evaluate-mini`: gathers the values of its cells
python -m bench.evaluation.pairs              # from the values gathered: bench/results/evaluation_pairs.md
"""

import json
from typing import Annotated

import typer

from bench import RESULTS
from bench.evaluation.metrics import METRICS, Bootstrap, per_prompt, shown
from janus_dola.images.whole_files import write_whole

VALUES, TABLE = RESULTS / "evaluation_values.json", RESULTS / "evaluation_pairs.md"
RUNS = ("evaluation", "evaluation_1000", "evaluation_temperatures")
METRICS_COMPARED = [metric for metric in METRICS if metric.key in ("all four", "entropy", "differing codes")]
IMAGES_OF_A_CAPTION = 4
# what is compared with what: (run, cell), (run, cell)
PAIRS = [
    (("evaluation_1000", "auto-alpha0.1-cfg5-t1"), ("evaluation_1000", "auto-alpha0.1-cfg5-t1-matched")),
    (("evaluation_1000", "auto-alpha0.1-cfg5-t1"), ("evaluation_temperatures", "baseline-cfg5-t0.16")),
    (("evaluation_1000", "auto-alpha0.5-cfg5-t1"), ("evaluation_1000", "auto-alpha0.5-cfg5-t1-matched")),
    (("evaluation_1000", "auto-alpha0.5-cfg5-t1"), ("evaluation_1000", "auto-alpha0.1-cfg5-t1")),
    (("evaluation_1000", "final-alpha0.5-cfg5-t1"), ("evaluation_1000", "auto-alpha0.5-cfg5-t1")),
    (("evaluation_1000", "final-alpha0.5-cfg5-t1"), ("evaluation_temperatures", "baseline-cfg5-t0.3")),
    (("evaluation", "auto-alpha0.5-cfg1-t1"), ("evaluation", "auto-alpha0.1-cfg1-t1")),
    *(
        (("evaluation", f"auto-alpha{alpha}-cfg{cfg}-t1"), ("evaluation", f"auto-alpha{alpha}-cfg{cfg}-t1-matched"))
        for cfg in (1, 5)
        for alpha in (0.05, 0.1, 0.25, 0.5)
    ),
]


def collect() -> None:
    """Gathers what is compared from the cells of the runs into one file."""
    values_of = {
        f"{run}/{cell.stem}": {
            metric.key: json.loads(cell.read_text(encoding="utf-8"))["values"][metric.key]
            for metric in METRICS_COMPARED
        }
        for run in RUNS
        for cell in sorted((RESULTS / run / "cells").glob("*.json"))
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in values_of.items())
    write_whole(VALUES, ("{\n" + lines + "\n}\n").encode())


def table(values: dict[str, dict[str, list[float]]]) -> str:
    """Tabulates per pair the first cell minus the second, mean and 95% interval."""
    names = [f"{metric.key}, {metric.unit}" for metric in METRICS_COMPARED]
    lines = ["| first minus second | images | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for first, second in PAIRS:
        a, b = (values["/".join(cell)] for cell in (first, second))
        images = len(a["all four"])
        prompts = images // IMAGES_OF_A_CAPTION
        bootstrap = Bootstrap(prompts)
        cells = []
        for metric in METRICS_COMPARED:
            difference = per_prompt(a[metric.key], prompts) - per_prompt(b[metric.key], prompts)
            cells.append(shown(metric, vars(bootstrap.estimate(difference)), signed=True))
        lines.append(f"| {first[1]} - {second[1]} | {images} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    gather: Annotated[bool, typer.Option("--collect", help="Gather the values of the cells first.")] = False,
) -> None:
    """Write the table."""
    if gather:
        collect()
    text = table(json.loads(VALUES.read_text(encoding="utf-8")))
    write_whole(TABLE, text.encode())
    print(text, end="")


if __name__ == "__main__":
    typer.run(main)
