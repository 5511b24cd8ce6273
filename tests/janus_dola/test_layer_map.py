"""Maps are made of the colours that their legends say, and tell apart what lies close to ln 2."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from janus_dola import DoLaConfig
from janus_dola.images.layer_map import colour_of_layer, css, css_ramp, heat, layer_map, level_of_jsd, small_map
from janus_dola.serve.form_page import form_page

LN2 = math.log(2)


@pytest.fixture(scope="module")
def drawn(mini):
    return mini("a large red circle on white", seed=3).drawn[0][0]


def test_equal_steps_of_colour_are_factors_of_ten_at_both_ends():
    shares = torch.tensor([0.0, 1e-5, 1e-3, 0.5, 0.999, 0.99999, 1.0, 1.0001], dtype=torch.float64)
    assert level_of_jsd(shares * LN2).tolist() == pytest.approx([0, 0, 0.2, 0.5, 0.8, 1, 1, 1], abs=1e-3)
    levels = torch.linspace(0, 1, 64).tolist()
    brightness = [sum(heat(level)) for level in levels]
    assert brightness == sorted(brightness, reverse=True)
    assert len({heat(level) for level in levels}) == 64


def test_divergences_of_a_real_image_are_told_apart(drawn):
    """Half of them lie within 1% of ln 2, where a scale in proportion has one colour."""
    near = drawn.jsd > 0.99 * LN2
    assert near.float().mean() > 0.5
    in_proportion = {round(127 * value) for value in (drawn.jsd[near] / LN2).tolist()}
    levels = np.asarray(small_map(drawn.premature_layers, drawn.jsd))[:, 8:].ravel()[near.numpy()]
    assert len(in_proportion) <= 3
    assert len(set(levels.tolist())) >= 10


def test_panels_hold_the_colours_of_layers_and_divergences(drawn):
    sheet = np.asarray(drawn.layer_map())
    assert sheet.shape == (376, 832, 3)
    layers, levels = drawn.premature_layers.view(8, 8), level_of_jsd(drawn.jsd).view(8, 8)
    for y, x in [(0, 0), (3, 5), (7, 7), (1, 2)]:
        at = 28 + 32 * y + 16
        assert tuple(sheet[at, 288 + 32 * x + 16].tolist()) == colour_of_layer(int(layers[y, x]))
        assert tuple(sheet[at, 560 + 32 * x + 16].tolist()) == heat(float(levels[y, x]))


def words_below(sheet: Image.Image) -> np.ndarray:
    return np.asarray(sheet)[328:, :]


def test_prompt_seed_and_settings_stand_on_the_sheet(mini, drawn):
    """Whatever differs in them, differs there; a long prompt is cut off."""
    sheets = {name: words_below(drawn.layer_map()) for name in ("once", "again")}
    assert np.array_equal(sheets["once"], sheets["again"])
    assert (sheets["once"] < 128).any()
    given = drawn.image, drawn.premature_layers, drawn.jsd, drawn.candidate_layers
    prompt, settings = drawn.recipe.prompt, drawn.recipe.summary()
    assert settings == "seed 3, DoLa alpha 0.1, layers auto, cfg 5, T 1"
    assert np.array_equal(words_below(layer_map(*given, prompt, settings)), sheets["once"])
    for other in ((prompt, settings.replace("3", "4")), ("a cross", settings), ("", "")):
        assert not np.array_equal(words_below(layer_map(*given, *other)), sheets["once"])
    long = words_below(layer_map(*given, "many words\n" * 500, settings))
    assert (long[:, -12:] == 255).all()
    assert not np.array_equal(long, sheets["once"])


@pytest.mark.parametrize("dola", [None, DoLaConfig(premature_layer="final")], ids=["baseline", "final layer"])
def test_where_nothing_was_contrasted_the_map_says_so(mini, dola):
    sheet = np.asarray(mini("a red circle", dola=dola).layer_map())
    for left in (288, 560):
        panel = sheet[28:284, left : left + 256]
        assert (panel.max(-1) - panel.min(-1)).max() <= 8  # grey: no colour of a layer
        words = (panel < 150).any(-1)
        assert 0 < words.mean() < 0.05
        assert words[118:138].any()
        assert not words[:110].any()


def distance(one, other):
    """CIE 1976 colour difference; 2.3 is a just noticeable one."""
    return math.dist(cielab(one), cielab(other))


def cielab(colour):
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour))
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y, z = 0.2126 * r + 0.7152 * g + 0.0722 * b, (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_any_layers_have_colours_that_can_be_told_apart():
    colours = [colour_of_layer(layer) for layer in range(128)]
    assert len(set(colours)) == 128
    assert min(distance(a, b) for a, b in itertools.combinations(colours[:32], 2)) > 25


@pytest.mark.parametrize("last", [8, 16, 18, 23])
def test_the_legend_has_each_layer_s_colour_and_says_how_many_it_leaves_out(last):
    layers = list(range(1, last + 1))
    jsd = torch.full((64,), 0.3)
    sheet = layer_map(Image.new("RGB", (64, 64)), torch.tensor(layers).repeat(8)[:64], jsd, layers)
    legend = {tuple(pixel) for pixel in np.asarray(sheet)[292:331, 288:544].reshape(-1, 3).tolist()}
    there = {layer for layer in layers if colour_of_layer(layer) in legend}
    assert there == set(layers if last <= 18 else layers[:17])


def test_a_layer_has_one_colour_everywhere(drawn):
    """In maps, small maps and the server's page; the batch page and figures take it from the same function."""
    small = small_map(drawn.premature_layers, drawn.jsd).convert("RGB")
    for code, layer in enumerate(drawn.premature_layers.tolist()):
        assert small.getpixel((code % 8, code // 8)) == colour_of_layer(layer)
    server = json.loads(re.search(r"const SERVER = (\{.*?\});", form_page("mini", False))[1])
    assert server["colours"] == [css(colour_of_layer(layer)) for layer in range(128)]
    assert server["ramp"] == css_ramp()
    assert css_ramp().startswith(f"linear-gradient(90deg, {css(heat(0))}, {css(heat(0.2))}")
    assert css_ramp().endswith(f"{css(heat(1))})")
