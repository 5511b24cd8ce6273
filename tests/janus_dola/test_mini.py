"""The pictures the mini model learned from, and the judge of what it draws."""

import random
from importlib.resources import files

import pytest
from PIL import Image

from bench.mini.judge import check, look
from bench.mini.pictures import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    draw,
    parse_caption,
    random_caption,
    random_scene,
)


def test_checker_is_right_on_pictures_pillow_draws():
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(600)]
    right = [check(draw(scene, rng), caption(scene)).all_right for scene in scenes]
    assert sum(right) >= 0.99 * len(right)


def test_checker_falls_to_chance_on_shuffled_captions():
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(1500)]
    captions = [caption(random_scene(rng)) for _ in scenes]
    verdicts = [check(draw(scene, rng), text) for scene, text in zip(scenes, captions, strict=True)]
    for name, choices in zip(ATTRIBUTES, (SIZES, COLOURS, SHAPES, BACKGROUNDS), strict=True):
        share = sum(verdict.right[name] for verdict in verdicts) / len(verdicts)
        assert share == pytest.approx(1 / len(choices), abs=0.05), name


@pytest.mark.parametrize("background", sorted(BACKGROUNDS))
def test_an_empty_picture_shows_no_shape(background):
    empty = Image.new("RGB", (64, 64), BACKGROUNDS[background])
    assert look(empty) == Scene(background=background)
    assert not check(empty, f"a large red circle on {background}").right["shape"]


def test_captions_can_be_read_back():
    rng = random.Random(2)
    for _ in range(200):
        scene = random_scene(rng)
        assert parse_caption(caption(scene)) == scene
        partial = parse_caption(random_caption(scene, rng))
        assert all(getattr(partial, name) in (None, getattr(scene, name)) for name in ATTRIBUTES)
        assert partial.colour
        assert partial.shape


def test_only_named_attributes_are_scored():
    rng = random.Random(3)
    picture = draw(Scene("large", "red", "circle", "white"), rng)
    assert check(picture, "a red square").right == {"colour": True, "shape": False}


def test_the_pictures_are_rich_enough():
    assert len(COLOURS) >= 6
    assert len(SHAPES) >= 4
    assert len(BACKGROUNDS) >= 3
    assert len(SIZES) >= 2


def test_checkpoint_is_small():
    folder = files("janus_dola.mini").joinpath("checkpoint")
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) <= 12e6
