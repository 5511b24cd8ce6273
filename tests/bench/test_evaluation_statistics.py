"""Intervals, matched temperatures and diversity: known answers on synthetic data."""

import math

import numpy as np
import pytest
import torch

from bench.evaluation.grid import Cell
from bench.evaluation.matching import HIGHEST, LOWEST, match_temperature
from bench.evaluation.measure import diversity
from bench.evaluation.metrics import METRICS, Bootstrap, Estimate, per_prompt, shown
from bench.evaluation.report import tables
from bench.evaluation.run import summaries

PROMPTS = 200


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, PROMPTS)
    actual = Bootstrap(PROMPTS).estimate(values)
    assert actual.mean == pytest.approx(values.mean())
    reach = 1.96 * values.std() / math.sqrt(PROMPTS)
    assert actual.high - actual.mean == pytest.approx(reach, rel=0.06)
    assert actual.mean - actual.low == pytest.approx(reach, rel=0.06)


def test_a_95_percent_interval_holds_the_truth_that_often():
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        actual = Bootstrap(60, seed=trial, resamples=500).estimate(rng.random(60) < 0.7)
        held += actual.low <= 0.7 <= actual.high
    assert 0.90 <= held / 300 <= 0.98


def measured(cell, values):
    raster = {"layers": [], "counts": [], "jsd": []}
    return {"cell": cell, "temperature": cell.temperature, "values": values, "raster": raster, "seconds": 1.0}


def test_differences_are_paired():
    """Prompts differ much, the two cells by exactly 0.25 on each: the difference is sure, the means are not."""
    rng = np.random.default_rng(2)
    hard = rng.random((PROMPTS, 4))
    baseline, dola = Cell("final", 0.0, 5.0, 1.0), Cell("auto", 0.1, 5.0, 1.0)
    rows = summaries(
        {
            baseline.name: measured(baseline, {"all four": hard.flatten().tolist()}),
            dola.name: measured(dola, {"all four": (hard + 0.25).flatten().tolist()}),
        },
        PROMPTS,
    )
    assert "from baseline" not in rows[0]["metrics"]["all four"]
    actual = rows[1]["metrics"]["all four"]
    assert actual["from baseline"] == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert actual["value"]["high"] - actual["value"]["low"] > 0.01


def test_a_cell_whose_entropy_no_temperature_reaches_has_no_matched_baseline():
    baseline, dola = Cell("final", 0.0, 5.0, 1.0), Cell("auto", 0.1, 5.0, 1.0)
    values = {"entropy": [0.1] * PROMPTS, "distinct codes": [3.0] * PROMPTS}
    rows = summaries(
        {
            baseline.name: measured(baseline, values),
            dola.name: measured(dola, values),
            f"{dola.name}-matched": {"cell": dola, "match": None, "seconds": 2.0},
        },
        PROMPTS,
    )
    assert "from matched" not in rows[1]["metrics"]["entropy"]
    assert rows[2]["metrics"] == {}
    settings = {"images": PROMPTS, "parallel_size": 1}
    text = tables({"settings": settings, "layers": {"auto": [2]}, "cells": rows})
    assert "| baseline matched to auto, alpha 0.1: no temperature gives its entropy |  |  |" in text


def test_images_of_a_prompt_count_as_one():
    """Four copies of each image say no more than one."""
    values = np.random.default_rng(3).random(PROMPTS)
    once = Bootstrap(PROMPTS).estimate(per_prompt(values, PROMPTS))
    assert Bootstrap(PROMPTS).estimate(per_prompt(np.repeat(values, 4), PROMPTS)) == once


def test_an_interval_that_ends_at_0_does():
    difference = np.zeros(40)
    difference[:2] = 0.1
    assert Bootstrap(40).estimate(difference).low == 0.0


def test_numbers_are_shown_in_their_units():
    share, entropy = METRICS[0], next(metric for metric in METRICS if metric.key == "entropy")
    assert shown(share, Estimate(0.975, 0.95, 1.0).rounded()) == "97.5 [95.0, 100.0]"
    assert shown(share, Estimate(0.0, -0.0001, 0.0213).rounded(), signed=True) == "+0.0 [+0.0, +2.1]"
    assert shown(entropy, Estimate(0.01234, 0.01, 0.02).rounded()) == "0.0123 [0.0100, 0.0200]"


@pytest.mark.parametrize("truth", [0.02, 0.1, 0.7, 1.0, 3.0, 15.0])
def test_a_temperature_is_found_for_a_known_entropy(truth):
    def entropy(temperature):  # steep, like that of a trained model
        return 4 / (1 + (2 / temperature) ** 3)

    actual = match_temperature(entropy, entropy(truth))
    assert actual.reached == entropy(actual.temperature)
    assert abs(actual.reached - entropy(truth)) <= 0.03 * entropy(truth)
    assert LOWEST <= actual.temperature <= HIGHEST


@pytest.mark.parametrize("target", [1e-9, 17.0])
def test_no_temperature_is_made_up_for_an_entropy_out_of_reach(target):
    assert match_temperature(lambda temperature: temperature, target) is None


def test_a_step_in_the_entropy_ends_the_search():
    actual = match_temperature(lambda temperature: 1.0 if temperature < 1 else 3.0, 2.5)
    assert actual.reached == 3.0


def test_diversity_of_codes_that_are_known():
    same = torch.zeros(1, 3, 4, dtype=torch.long)
    apart = torch.arange(12).view(1, 3, 4)
    half = torch.tensor([[[0, 1, 2, 3], [0, 1, 5, 6], [0, 1, 2, 3]]])
    actual = diversity(torch.cat([same, apart, half]))
    assert actual["distinct codes"] == [1, 12, 6]
    assert actual["differing codes"] == pytest.approx([0, 1, 1 / 3])  # of three pairs two differ, at half the positions
    assert "differing codes" not in diversity(apart[:, :1])
