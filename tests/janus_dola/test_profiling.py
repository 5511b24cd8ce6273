"""`janus-dola profile`: one decode step, recorded."""

import json
import re

import pytest

from janus_dola import DoLaConfig
from janus_dola.profiling import profile_step


@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
def test_one_step_is_recorded_and_its_ten_dearest_operations_are_told(mini, tmp_path, dola):
    trace = tmp_path / "new" / "step.json"
    table = profile_step(mini, 2, dola, "auto", "eager", trace)
    rows = re.findall(r"^ +(\S.*?)  +\S+%", table, re.MULTILINE)
    assert len(rows) == 10
    assert "decode step" in rows
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["name"] == "decode step" and event.get("cat") == "user_annotation" for event in events) == 1
    attention = [event for event in events if event["name"] == "aten::scaled_dot_product_attention"]
    assert len(attention) == mini.parts.num_layers  # those of one step


def test_images_out_of_range(mini, tmp_path):
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        profile_step(mini, 0, None, "auto", "eager", tmp_path / "x.json")
