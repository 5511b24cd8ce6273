"""What is said of differences between cells of the evaluation follows from the committed values."""

import json

import pytest

from bench.evaluation import pairs

VALUES = json.loads(pairs.VALUES.read_text(encoding="utf-8"))


def test_the_table_is_that_of_the_committed_values():
    assert pairs.TABLE.read_text(encoding="utf-8") == pairs.table(VALUES)


def test_the_values_are_those_of_the_committed_cells():
    for run in pairs.RUNS:
        path = pairs.RESULTS / run / "evaluation.json"
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            values = VALUES[f"{run}/{cell['name']}"]
            for metric in pairs.METRICS_COMPARED:
                mean = sum(values[metric.key]) / len(values[metric.key])
                assert mean == pytest.approx(cell["metrics"][metric.key]["value"]["mean"], rel=1e-4), cell["name"]


def test_the_text_quotes_the_table():
    text = (pairs.RESULTS.parent / "evaluation.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in pairs.TABLE.read_text(encoding="utf-8").splitlines()[2:]]
    quoted = [all_four for _, _, all_four, _, _ in rows if all_four in text]
    assert len(quoted) >= 9
