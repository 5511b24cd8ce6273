import json
import os
import struct
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from janus_dola import DoLaConfig
from janus_dola.cli import app as cli
from janus_dola.images.files import file_name, name_beside
from janus_dola.images.recipe import CODES, Recipe, encode_codes, read_recipe, save_image
from janus_dola.settings import DrawSettings
from tests.bounds import bounded

SETTINGS = DrawSettings(5.0, 0.7, DoLaConfig([2, 4], 0.25), "blue")
RECIPE = Recipe("mini", 'ein roter Kreis, 赤い円 😀\n"x"', 2**62, SETTINGS, "float32")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("dola", [None, DoLaConfig(), DoLaConfig([2, 4], 0.25), DoLaConfig(premature_layer="final")])
def test_recipe_survives_in_every_format(ending, dola, tmp_path):
    recipe = replace(RECIPE, settings=DrawSettings(5.0, 0.7, dola), revision="v1" if dola else None)
    path = tmp_path / f"a.{ending}"
    save_image(Image.new("RGB", (64, 64), "red"), path, recipe)
    assert read_recipe(path) == recipe
    assert Image.open(path).size == (64, 64)


@given(prompt=st.text(max_size=3000), index=st.integers(0, 10**7))
def test_file_names_are_safe_for_any_prompt(prompt, index):
    name = file_name({"index": index, "words": prompt, "k": 3}, "jpg")
    assert name.startswith(f"{index}_")
    assert name.endswith("_p3.jpg")
    assert not set(name) & set('/\\:*?"<>|\0\n\r')
    assert len(name.encode()) < 250
    assert "_p3" in name


def test_file_names_are_readable():
    fields = {"index": 7, "words": "A large red circle, on white!", "k": 0}
    assert file_name(fields, "jpg") == "7_A_large_red_circle_on_white_p0.jpg"
    assert file_name({"index": 0, "words": "../..", "k": 1}, "png") == "0_image_p1.png"
    assert name_beside(Path("a/x.jpg"), "map", "png") == "x_map.png"


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r"format must be one of \['jpg', 'png', 'webp', 'safetensors'\], got 'gif'"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.gif", RECIPE)


def test_files_without_a_recipe(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="carries no recipe"):
        read_recipe(tmp_path / "a.png")
    exif = Image.Exif()
    exif[270] = "holiday"
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg", exif=exif)
    with pytest.raises(ValueError, match="not a recipe of janus-dola: 'holiday'"):
        read_recipe(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_text("text")
    with pytest.raises(ValueError, match="is not an image"):
        read_recipe(tmp_path / "c.png")


def with_description(path, description):
    exif = Image.Exif()
    exif[270] = description
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return path


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**4000)
    | st.just(float("inf")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*json.loads(RECIPE.to_json()), "unknown"]


def outcome(read):
    """What was read and None, or None and what the ValueError said."""
    try:
        return read(), None
    except ValueError as error:
        return None, str(error)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1))
@example({"temperature": 10**400})
@example({"candidate_layers": {"a": 1}})
@example({"alpha": True})
@example({"contrast": []})
@example({"dola": []})
def test_every_json_value_for_every_key_of_a_recipe(changes):
    fields = json.loads(RECIPE.to_json()) | changes
    with bounded():
        recipe, said = outcome(lambda: Recipe.from_json(json.dumps(fields)))
    if recipe is None:
        assert said.startswith("not a recipe of janus-dola: ")
        assert "\n" not in said
        assert len(said) < 300
    else:
        fields["negative_prompt"] = ((fields["negative_prompt"] or "").strip() and fields["negative_prompt"]) or None
        assert json.loads(recipe.to_json()) == fields
        assert isinstance(recipe.model, str)
        assert 0 <= recipe.seed < 2**64
        assert recipe.settings.temperature >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 5}, "model must be a string, got 5"),
        ({"cfg_weight": "5"}, "cfg_weight must be a finite number, got '5'"),
        ({"temperature": 10**400}, "temperature must be a finite number"),
        ({"temperature": -1}, "temperature must be a finite number >= 0"),
        ({"seed": 2**64}, "seed must be an int in 0 .. 18446744073709551615"),
        ({"seed": True}, "seed must be an int in .*, got True"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"negative_prompt": ["x"]}, "negative_prompt must be None or a string"),
        ({"quantize": "int4"}, "quantize must be None or one of"),
        ({"contrast": 5}, "contrast must be one of .*, got 5"),
        ({"contrast": None}, "candidate_layers must be left out with contrast none"),
        ({"dola": True}, "contrast must be left out where dola is given, got 'dola'"),
        ({"alpha": "x"}, "alpha must be a finite number in .*, got 'x'"),
        ({"more": 1}, "its keys must be settings that exist, got 'more'"),
    ],
)
def test_recipes_that_are_none_say_why(changes, message):
    fields = {**json.loads(RECIPE.to_json()), **changes}
    with pytest.raises(ValueError, match=f"not a recipe of janus-dola: .*{message}"):
        Recipe.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text", ["[" * 5000, '{"a":' * 5000, "null", "5", "9" * 5000, '{"seed": ' + "9" * 5000 + "}", "x" * 2**21, ""]
)
def test_texts_that_are_no_recipe(text):
    with pytest.raises(ValueError, match="not a recipe of janus-dola: ") as raised:
        Recipe.from_json(text)
    assert len(str(raised.value)) < 200


@settings(max_examples=150)
@given(ending=st.sampled_from(["jpg", "png", "webp", "safetensors"]), data=st.data())
def test_every_truncation_and_flip_of_an_image_is_read_or_refused(ending, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"whole.{ending}"
    if not path.exists() and ending == CODES:
        path.write_bytes(encode_codes(torch.arange(64), {}, RECIPE))
    elif not path.exists():
        save_image(Image.radial_gradient("L").resize((64, 64)).convert("RGB"), path, RECIPE)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for place in data.draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=3)):
        if content:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = path.with_name(f"damaged.{ending}")
    damaged.write_bytes(content)
    with bounded():
        recipe, said = outcome(lambda: read_recipe(damaged))
    assert isinstance(recipe, Recipe) or str(damaged) in said
    assert "\n" not in (said or "")


def png(width, height, *chunks):
    """A PNG by hand: size, and chunks of type and content."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pieces = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        pieces.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(pieces)


BOMBS = {
    "65535 x 65535.png": png(65535, 65535, (b"IDAT", zlib.compress(bytes(10**6)))),
    "10000 x 9000.png": png(10_000, 9_000, (b"IDAT", zlib.compress(bytes(10**6)))),
    "text.png": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), (b"IDAT", zlib.compress(bytes(200)))),
    "profile.png": png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))), (b"IDAT", zlib.compress(bytes(200)))),
    "exif.png": png(8, 8, (b"eXIf", b"II*\0\xff\xff\xff\xff" * 100), (b"IDAT", zlib.compress(bytes(200)))),
    "file.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "nothing.jpg": b"",
    "page.png": b"<!DOCTYPE html>",
    "half.jpg": b"\xff\xd8\xff\xe1\xff\xffExif\0\0MM\0*",
}


@pytest.mark.parametrize("name", [*BOMBS, "large", "number", "latin", "deep", "fifo"])
def test_files_made_to_do_harm_end_in_one_line(name, tmp_path, monkeypatch, capsys):
    path = tmp_path / name
    if name in BOMBS:
        path.write_bytes(BOMBS[name])
    elif name == "large":
        path.touch()
        os.truncate(path, 2**40)
    elif name == "fifo":
        os.mkfifo(path)
    else:
        content = {"number": 5, "latin": b"\xff\xfe", "deep": json.dumps({"model": 5})[:-1] + "[" * 20_000}[name]
        path = with_description(tmp_path / f"{name}.png", content)
    monkeypatch.setattr(sys, "argv", ["janus-dola", "generate", "--from", str(path)])
    begin = time.perf_counter()
    with pytest.raises(SystemExit) as stop:
        cli.run(cli.app)
    assert time.perf_counter() - begin < 5
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"janus-dola: error: {path} ")
    assert "carries no" in lines[0] or "is not an image" in lines[0] or "carries not" in lines[0]
