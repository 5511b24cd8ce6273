"""`janus-dola profile`: one pass, recorded."""

import json
import re

import pytest

from janus_dola import DoLaConfig
from janus_dola.engine.plan import make_plan
from janus_dola.engine.profiling import half_way, profile_pass
from janus_dola.settings import DrawSettings

PROMPT = "a large red circle on white"


@pytest.mark.parametrize(("dola", "window"), [(None, 1), (DoLaConfig(), 8), (DoLaConfig(), "auto")])
def test_one_pass_is_recorded_and_its_ten_dearest_operations_are_told(mini, tmp_path, dola, window):
    trace = tmp_path / "new" / "pass.json"
    (rows,) = mini.encode(PROMPT)
    table = profile_pass(mini.engine, rows, 2, DrawSettings(contrast=dola), "auto", "eager", trace, window)
    rows = re.findall(r"^ +(\S.*?)  +\S+%", table, re.MULTILINE)
    assert len(rows) == 10
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["name"] == "pass" and event.get("cat") == "user_annotation" for event in events) == 1
    attention = [event for event in events if event["name"] == "aten::scaled_dot_product_attention"]
    assert len(attention) == mini.image_model.num_layers  # those of one pass


@pytest.mark.parametrize("window", [1, 8])
def test_the_pass_is_that_of_images_half_drawn(mini, window):
    settings, (rows,) = DrawSettings(contrast=None), mini.encode(PROMPT)
    middle, plan = mini.image_model.image_tokens // 2, make_plan(mini.image_model, settings)
    with half_way(mini.engine, rows, 2, plan, settings.sampling_params(()), window) as runner:
        slots = runner.decoder.slots
        before = slots.decided.clone()
        assert middle <= before.min() < middle + window
        assert runner.visible >= slots.prompt_tokens.max() + before.max() - 1 + window
        runner.advance()
    expected = mini.generate(PROMPT, 2, dola=None, window=1).tokens[0]
    assert (slots.decided > before).all()
    for slot, decided in enumerate(slots.decided.tolist()):
        assert slots.tokens[slot, :decided].tolist() == expected[slot, :decided].tolist()


def test_images_out_of_range(mini, tmp_path):
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        profile_pass(mini.engine, *mini.encode(PROMPT), 0, DrawSettings(), "auto", "eager", tmp_path / "x.json")
