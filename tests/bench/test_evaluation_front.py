"""The front: cells that are drawn, measured and kept; differences at equal variety; the distance from pictures."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

from bench.evaluation import features, front, front_report
from bench.evaluation.metrics import Bootstrap
from bench.mini.pictures import caption


def test_scenes_for_lenses_are_not_those_of_the_result():
    training, result = ({caption(scene) for scene in half} for half in front.scenes())
    assert len(training) == len(result) == 72
    assert not training & result


def test_cells_have_a_name_each_and_settings_that_the_model_has():
    cells = front.result() + front.candidates()
    assert len({cell.name for cell in front.result()}) == len(front.result())
    for cell in cells:
        assert len(cell.settings.layers_to_read(8)) == (
            0 if cell.layer is None else 1 if cell.layer in (2, 4, 6, "apart") else 3
        )
        assert (cell.settings.lens is None) == (cell.lens is None)


def test_cells_are_drawn_once_and_gathered(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(front, "WORK", tmp_path)
    monkeypatch.setattr(front, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(front, "load", lambda model, dtype: mini)
    few = [half[:2] for half in front.scenes()]
    monkeypatch.setattr(front, "scenes", lambda: few)
    monkeypatch.setattr(front, "_IMAGES_OF_A_CAPTION", {"choose": 2, "draw": 2})
    monkeypatch.setattr(features, "_PICTURES", 2)
    monkeypatch.setattr(front, "lens_file", lambda model, seed: mini.image_model.folder / "lens.safetensors")
    plain, lens = front.Cell("mini", 2.0), front.Cell("mini", 2.0, 1.0, 0.1, 2, 0.5, 0)
    cells = [plain, lens, front.replace(lens, layer="mean")]
    lines = list(front.run("draw", cells, "float32"))
    assert lines[1].startswith("2/3 model mini cfg 2 alpha 0.1 layer 2 beta 0.5 lens 0: ")
    record = json.loads(front.collect("draw", "float32").read_text())
    assert len({str(entry["differing"]) for entry in record["cells"]}) > 1
    monkeypatch.setattr(front, "measure", None)  # all are there
    assert list(front.run("draw", cells, "float32")) == lines
    known = [front_report.Measured(entry, record["images"]) for entry in record["cells"]]
    assert "| alpha 0.1 layer 2 beta 0.5 lens 0 |" in front_report.tables(known, Bootstrap(2, resamples=50))
    assert front_report.figure(known, Bootstrap(2, resamples=50), [("mini", 2.0)]).startswith(b"\x89PNG")


def test_the_difference_at_equal_variety_lies_between_the_neighbours():
    def cell(right, differing, **more):
        entry = {
            "cell": front.asdict(front.Cell("mini", 1.0, **more)),
            "right": right,
            "differing": differing,
            "distance": 0,
        }
        return front_report.Measured(entry, 10)

    low, high = cell([8, 6], [0.4, 0.4], temperature=0.5), cell([2, 4], [0.8, 0.8])
    own = cell([7, 6], [0.6, 0.6], layer=2, beta=1.0, lens=0)
    gain = front_report.at_equal_variety(own, [high, low], Bootstrap(2, resamples=20))
    assert gain[0] == pytest.approx(0.65 - 0.5)
    assert (
        front_report.at_equal_variety(cell([1, 1], [0.9, 0.9], layer=2), [high, low], Bootstrap(2, resamples=20))
        is None
    )


def test_the_distance_is_that_of_two_normal_distributions(mini):
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + shift for shift in (0.0, 0.5))
    args = a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T)
    root = scipy.linalg.sqrtm(args[1] @ args[3]).real
    expected = np.square(args[0] - args[2]).sum() + np.trace(args[1] + args[3] - 2 * root)
    assert features.frechet(*args) == pytest.approx(expected)
    assert features.frechet(*args[:2], *args[:2]) == pytest.approx(0, abs=1e-6)
    pictures = mini.generate("a red circle", 2).images[0]
    assert features.features(mini, pictures).shape == (2, 192)
    assert torch.equal(features.features(mini, pictures), features.features(mini, pictures))


def test_the_table_of_the_page_is_that_of_the_record():
    record = json.loads((front.FOLDER / "front.json").read_text(encoding="utf-8"))
    known = [front_report.Measured(entry, record["images"]) for entry in record["cells"]]
    table = front_report.short_table(known, Bootstrap(72, resamples=2000))
    begin, end = front_report.MARKERS
    assert f"{begin}{table}{end}" in front_report.PAGE.read_text(encoding="utf-8")
