"""One class of settings through every front: adding one is a field."""

import json
import math

import pytest
from hypothesis import given

from janus_dola import DoLaConfig
from janus_dola.settings import SETTINGS, DrawSettings
from tests.janus_dola.strategies import draw_settings


@given(draw_settings)
def test_json_and_names_give_the_settings_back(settings):
    for others in (DrawSettings(), DrawSettings(2.0, 0.5, DoLaConfig([1, 2], 0.3, 2), "x", 9, 0.4)):
        assert DrawSettings().changed(json.loads(json.dumps(settings.to_json()))) == settings
        named = settings.named()
        assert set(named) <= set(SETTINGS)
        unset = {"negative_prompt": None, "top_k": 0, "top_p": 1.0}
        assert others.changed({"dola": True, **unset, **json.loads(json.dumps(named))}) == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cfg_weight": math.inf}, "cfg_weight must be a finite number, got inf"),
        ({"temperature": -1}, "temperature must be a finite number >= 0 .0 is greedy., got -1"),
        ({"temperature": 1e-9}, "temperature must be 0 .greedy. or at least 1e-06, got 1e-09"),
        ({"dola": "yes"}, "dola must be true or false, got 'yes'"),
        ({"alpha": 2}, "alpha must lie in .0, 1., got 2"),
        ({"dola": False, "alpha": 2}, "alpha must lie in .0, 1., got 2"),
        ({"candidate_layers": "2,4"}, "candidate_layers must be \"auto\" or a list of ints, got '2,4'"),
        ({"premature_layer": 1.5}, 'premature_layer must be None, "final" or an int, got 1.5'),
        ({"top_k": 1.5}, "top_k must be an int in 0 .. 2147483647, got 1.5"),
        ({"top_p": 0}, "top_p must lie in .0, 1., got 0"),
        ({"negative_prompt": 5}, "negative_prompt must be None or a string, got 5"),
    ],
)
def test_what_is_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        DrawSettings().changed(given)


def test_dola_of_settings_without_it():
    plain = DrawSettings(dola=None)
    with pytest.raises(ValueError, match="alpha must be left out where there is no DoLa"):
        plain.changed({"alpha": 0.2})
    assert plain.changed({"dola": True, "alpha": 0.2}).dola == DoLaConfig(alpha=0.2)
    assert DrawSettings().changed({"dola": False, "alpha": 0.2}) == plain


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    dola = DoLaConfig(numpy.arange(2, 5), numpy.float32(0.5), numpy.int64(3))
    assert dola == DoLaConfig((2, 3, 4), 0.5, 3)
    assert json.dumps(DrawSettings(numpy.float64(5), numpy.float32(1), dola, top_k=numpy.int32(3)).to_json())
