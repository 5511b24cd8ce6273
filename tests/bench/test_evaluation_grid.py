"""The cells of an evaluation's grid, and how it is written on the command line."""

import pytest

from bench.evaluation.grid import LAYER_SETS, Cell, Grid, layer_set, parse_grid
from janus_dola import DoLaConfig


def test_one_string_or_many_words_are_the_same_grid():
    grid = Grid(("auto", "final"), (0.0, 0.1), (1.0, 5.0), (0.7,))
    assert parse_grid(["alpha=0,0.1", "layers=auto,final", "cfg=1,5", "temperature=0.7"]) == grid
    assert parse_grid(["alpha=0,0.1 layers=auto,final", "cfg=1,5 temperature=0.7"]) == grid


def test_without_words_the_grid_has_the_defaults_of_dola():
    (baseline, cell) = parse_grid([]).cells()
    assert baseline.is_baseline
    assert cell.settings(8, 0).contrast == DoLaConfig(layer_set("auto", 8, 0), DoLaConfig().alpha)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpha"], "grid must be of KEY=VALUE,VALUE,... with KEY of layers, alpha, cfg, temperature, got 'alpha'"),
        (["beta=1"], "with KEY of layers, alpha, cfg, temperature, got 'beta=1'"),
        (["alpha=0,x"], "alpha must be numbers separated by commas, got '0,x'"),
        (["alpha="], "alpha must be numbers separated by commas, got ''"),
        (["alpha=0", "cfg=1 alpha=1"], "grid must name alpha once, got it again in 'alpha=1'"),
        (["alpha=0,0.1,0"], "grid must name each value of alpha once, got 0,0.1,0"),
        (["layers=auto,middle,"], "layers must be of auto, early, late, random, final, got middle,"),
        (["alpha=1.5"], "alpha must lie in [0, 1], got 1.5"),
        (["alpha=nan"], "alpha must be a finite number in [0, 1], got nan"),
        (["cfg=inf"], "cfg_weight must be a finite number, got inf"),
        (["temperature=-1"], "temperature must be a finite number >= 0"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(words, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared whole)
        parse_grid(words)
    assert message in str(error.value)


def test_every_cell_is_there_once_and_after_its_baseline():
    cells = parse_grid(["alpha=0,0.1", "layers=auto,final", "cfg=1,5", "temperature=1,2"]).cells()
    assert len(cells) == len(set(cells)) == 4 * 4  # "final" at alpha 0 is the baseline itself
    assert len({cell.name for cell in cells}) == len(cells)
    for place, cell in enumerate(cells):
        assert cell.baseline in cells[: place + 1]


def test_baselines_are_drawn_though_the_grid_does_not_name_them():
    cells = parse_grid(["alpha=0.1", "layers=auto", "cfg=1,5"]).cells()
    assert [cell.name for cell in cells] == [
        "baseline-cfg1-t1",
        "auto-alpha0.1-cfg1-t1",
        "baseline-cfg5-t1",
        "auto-alpha0.1-cfg5-t1",
    ]


@pytest.mark.parametrize("num_layers", [3, 4, 8, 24, 30])
def test_layer_sets_lie_below_the_final_layer_and_are_equally_many(num_layers):
    sets = {name: layer_set(name, num_layers, seed=3) for name in LAYER_SETS}
    assert sets.pop("final") == []
    for name, layers in sets.items():
        assert layers == sorted(set(layers)), name
        assert len(layers) == len(sets["auto"]), name
        assert layers[0] >= 1, name
        assert layers[-1] <= num_layers - 1, name


def test_layer_sets_of_a_model_of_30_blocks():
    assert layer_set("auto", 30, 0) == [22, 24, 26, 28]
    assert layer_set("early", 30, 0) == [1, 2, 3, 4]
    assert layer_set("late", 30, 0) == [26, 27, 28, 29]
    assert len({tuple(layer_set("random", 30, seed)) for seed in range(10)}) > 5
    assert layer_set("random", 30, 5) == layer_set("random", 30, 5)


def test_a_cells_settings():
    assert Cell("final", 0.0, 5.0, 1.0).settings(8, 0).contrast is None
    assert Cell("final", 0.1, 5.0, 1.0).settings(8, 0).contrast == DoLaConfig(alpha=0.1, premature_layer="final")
    assert Cell("late", 0.0, 5.0, 1.0).settings(8, 0).contrast == DoLaConfig((5, 6, 7), 0.0)
