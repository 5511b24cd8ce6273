"""One class of settings through every front: adding one is a field."""

import json
import math

import pytest
from hypothesis import given

from janus_dola import DoLaConfig
from janus_dola.contrasts import CONTRASTS
from janus_dola.kernels.contrast import ADMITTED, METHODS
from janus_dola.settings import SETTINGS, DrawSettings, with_changes
from tests.janus_dola.strategies import draw_settings


@given(draw_settings)
def test_json_gives_the_settings_back(settings):
    as_json = json.loads(json.dumps(settings.to_json()))
    assert set(as_json) <= set(SETTINGS)
    for others in (DrawSettings(), DrawSettings(2.0, 0.5, DoLaConfig([1, 2], 0.3, 2), "x", 9, 0.4)):
        assert others.changed(as_json) == settings


def test_json_is_flat_and_has_all_keys_of_the_method():
    own = {"candidate_layers": [2, 4], "alpha": 0.1, "premature_layer": None, "beta": None, "lens": None}
    others = {"cfg_weight": 5.0, "temperature": 1.0, "negative_prompt": None, "top_k": 0, "top_p": 1.0}
    assert DrawSettings(contrast=DoLaConfig([2, 4])).to_json() == {"contrast": "dola", **own, **others}
    assert DrawSettings(contrast=None).to_json() == {"contrast": None, **others}


def test_every_contrast_has_a_method_of_its_name():
    assert list(CONTRASTS) == list(METHODS) == list(ADMITTED)
    for name, owner in CONTRASTS.items():
        assert DrawSettings(contrast=owner()).to_json()["contrast"] == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cfg_weight": math.inf}, "cfg_weight must be a finite number, got inf"),
        ({"temperature": -1}, "temperature must be a finite number >= 0 .0 is greedy., got -1"),
        ({"temperature": 1e-9}, "temperature must be 0 .greedy. or at least 1e-06, got 1e-09"),
        ({"dola": "yes"}, "dola must be true or false, got 'yes'"),
        ({"contrast": "dolce"}, r"contrast must be one of \['dola'.*'none'\], got 'dolce'"),
        ({"contrast": {"alpha": 1}}, r"contrast must be one of \['dola'.*'none'\], got {'alpha': 1}"),
        ({"contrast": "none", "dola": True}, "contrast must be left out where dola is given, got 'none'"),
        ({"alpha": 2}, "alpha must lie in .0, 1., got 2"),
        ({"contrast": "none", "alpha": 0.2}, "alpha must be left out with contrast none, since it belongs to dola"),
        ({"dola": False, "alpha": 2}, "alpha must lie in .0, 1., got 2"),
        (
            {"dola": False, "evolution_rate": 2},
            "evolution_rate must be left out with contrast none, .* belongs to sled",
        ),
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


def test_settings_of_a_contrast_that_is_not_there():
    plain = DrawSettings(contrast=None)
    with pytest.raises(ValueError, match="alpha must be left out with contrast none, since it belongs to dola"):
        plain.changed({"alpha": 0.2})
    assert plain.changed({"dola": True, "alpha": 0.2}).contrast == DoLaConfig(alpha=0.2)
    assert plain.changed({"contrast": "dola", "alpha": 0.2}).contrast == DoLaConfig(alpha=0.2)
    for off in ({"dola": False}, {"dola": False, "alpha": 0.2}, {"contrast": None}, {"contrast": "none"}):
        assert DrawSettings().changed(off) == plain
    for others in (plain, DrawSettings()):  # as tables and clients send what they leave out
        assert others.changed({"dola": None}) == others
    assert DrawSettings(dola=None) == plain
    with pytest.raises(ValueError, match="contrast must be left out where dola is given, got DoLaConfig"):
        DrawSettings(dola=None, contrast=DoLaConfig())


def test_dola_is_another_name_of_the_contrast():
    assert with_changes(DrawSettings(), {"dola": None}).contrast is None
    with pytest.raises(
        ValueError, match="dola must be a contrast such as DoLaConfig.., or None for plain decoding, got 5"
    ):
        with_changes(DrawSettings(), {"dola": 5})
    with pytest.raises(
        ValueError, match="contrast must be a contrast such as DoLaConfig.., or None for plain decoding, got 5"
    ):
        with_changes(DrawSettings(), {"contrast": 5})
    with pytest.raises(ValueError, match="contrast must be left out where dola is given, got None"):
        with_changes(DrawSettings(), {"contrast": None, "dola": None})


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    dola = DoLaConfig(numpy.arange(2, 5), numpy.float32(0.5), numpy.int64(3))
    assert dola == DoLaConfig((2, 3, 4), 0.5, 3)
    assert json.dumps(DrawSettings(numpy.float64(5), numpy.float32(1), dola, top_k=numpy.int32(3)).to_json())
