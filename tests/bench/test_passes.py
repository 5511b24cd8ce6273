"""The counts of passes and of codes that differ say what they claim, and the page shows those that are committed."""

import json

import pytest
import torch

from bench.report import pages
from bench.speed import passes
from janus_dola import DoLaConfig


def test_passes_of_images(mini):
    prompts = passes.captions(3)
    one = passes.passes(mini, prompts, None, window=1)
    assert one == {"mean": mini.image_model.image_tokens - 1, "deviation": 0, "codes_a_pass": 1}
    drawn = mini.generate(prompts, dola=DoLaConfig(), window=8).passes.double()
    eight = passes.passes(mini, prompts, DoLaConfig(), window=8)
    assert eight["mean"] == pytest.approx(drawn.mean().item())
    assert eight["deviation"] == pytest.approx(drawn.std(correction=0).item())
    assert eight["codes_a_pass"] == pytest.approx((mini.image_model.image_tokens - 1) / drawn.mean().item())


def test_codes_that_differ_are_counted_for_each_ten_thousand():
    some = torch.zeros(4, 50, dtype=torch.int64)
    others = some.clone()
    others[1, 20:] = 1
    others[3, -1] = 2
    assert passes.difference(some, others) == {"codes": 31 * 50, "images": 2 * 50}
    assert passes.difference(some, some) == {"codes": 0, "images": 0}


def test_the_page_shows_the_committed_counts():
    results = json.loads(passes.FILE.read_text(encoding="utf-8"))
    page = pages.REPORT.read_text(encoding="utf-8")
    assert pages.between("passes").search(page)[0] == passes.text(results), "run `make passes`"
    assert all(results["passes"][name]["1"]["codes_a_pass"] == 1 for name in passes.METHODS)
