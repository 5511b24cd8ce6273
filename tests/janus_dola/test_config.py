import pytest

from janus_dola.contrasts import DoLaConfig, auto_candidate_layers, sanitize_candidate_layers


@pytest.mark.parametrize(
    ("blocks", "layers"),
    [(30, [22, 24, 26, 28]), (32, [24, 26, 28, 30]), (24, [16, 18, 20, 22]), (8, [2, 4, 6]), (3, [1]), (2, [])],
)
def test_auto_layers(blocks, layers):
    assert auto_candidate_layers(blocks) == layers


def test_layers_outside_the_model_are_dropped_with_one_warning(recwarn):
    assert sanitize_candidate_layers([28, 22, 0, 30, -1, 99, 22], 30) == [22, 28]
    assert [str(w.message) for w in recwarn] == [
        "candidate_layers outside 1 .. 29 dropped: [-1, 0, 30, 99]; [22, 28] remain"
    ]


def test_no_layer_left():
    with pytest.raises(
        ValueError, match=r"candidate_layers must name a layer in 1 .. 7 .*8 blocks.*, got \[0, 8, 20\]"
    ):
        sanitize_candidate_layers([0, 8, 20], 8)


def test_layers_to_read():
    assert DoLaConfig().layers_to_read(24) == [16, 18, 20, 22]
    assert DoLaConfig([3, 1]).layers_to_read(8) == [1, 3]
    assert DoLaConfig(premature_layer=5).layers_to_read(8) == [5]
    assert DoLaConfig(premature_layer="final").layers_to_read(8) == []


@pytest.mark.parametrize("layer", [0, 8, -1])
def test_static_layer_outside_the_model(layer):
    with pytest.raises(ValueError, match=f"premature_layer must lie in 1 .. 7, .* got {layer}"):
        DoLaConfig(premature_layer=layer).layers_to_read(8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.01}, r"alpha must lie in \[0, 1\], got 1.01"),
        ({"alpha": float("nan")}, r"alpha must be a finite number in \[0, 1\], got nan"),
        ({"candidate_layers": "all"}, "candidate_layers must be \"auto\" or a list of ints, got 'all'"),
        ({"candidate_layers": []}, r'candidate_layers must be "auto" or a list of ints, got \[\]'),
        ({"candidate_layers": [1.5]}, r'candidate_layers must be "auto" or a list of ints, got \[1.5\]'),
        ({"premature_layer": "last"}, "premature_layer must be None, \"final\" or an int, got 'last'"),
        ({"premature_layer": True}, 'premature_layer must be None, "final" or an int, got True'),
        ({"beta": -0.1}, "beta must be None or lie in 0 .. 999, got -0.1"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        DoLaConfig(**arguments)
