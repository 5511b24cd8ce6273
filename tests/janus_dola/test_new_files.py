"""Pictures are never replaced silently: names tell them apart, what is there is refused, and links are not followed."""

import pytest
from PIL import Image

from janus_dola import JanusDoLa
from janus_dola.cli.names import settings_named
from janus_dola.images.files import file_name, refuse_existing, write_new
from janus_dola.images.recipe import read_recipe

DEFAULTS = {
    "outdir": "o",
    "seed": "0",
    "cfg_weight": 5.0,
    "contrast": "dola",
    "alpha": 0.1,
    "model": "mini",
    "top_k": None,
}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"outdir": "elsewhere", "cfg_weight": 5.0}, ""),
        ({"cfg_weight": 2.5, "seed": "7"}, "seed-7_cfg-weight-2.5"),
        ({"contrast": None}, "no-dola"),
        ({"alpha": 0.3, "top_k": 50}, "alpha-0.3_top-k-50"),
        ({"model": "../a b/ö*?"}, "model-.._a_b_ö"),
    ],
)
def test_settings_that_are_not_the_default_ones_are_named(given, named):
    assert settings_named({**DEFAULTS, **given}, DEFAULTS) == named


def test_long_settings_are_a_digest():
    long, other = ({**DEFAULTS, "a": text * 32, "b": text * 32} for text in "éö")
    defaults = {**DEFAULTS, "a": "", "b": ""}
    assert settings_named(long, defaults).startswith("settings-")
    assert settings_named(long, defaults) != settings_named(other, defaults)


@pytest.mark.parametrize("settings", ["no-dola", "é" * 60])
def test_names_of_any_length_fit_on_a_disk_and_keep_their_numbers(settings):
    template = "{index}_{words}_{settings}_p{k}"
    names = {
        file_name({"index": index, "words": "円" * 48, "settings": settings, "k": k}, "webp", template, 230)
        for index in (0, 12345)
        for k in (0, 65535)
    }
    assert len(names) == 4
    for name in names:
        assert len(name.encode()) + len("_no-dola_again") <= 255
        assert name.endswith((f"_{settings}_p0.webp", f"_{settings}_p65535.webp"))


@pytest.fixture
def drawing_nothing(monkeypatch):
    """A model that must not be loaded."""

    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    return lambda: monkeypatch.setattr(JanusDoLa, "from_pretrained", load)


def test_what_is_drawn_again_and_its_baseline_lie_beside_the_first(call, tmp_path, drawing_nothing):
    command = ["generate", "a red circle", "--outdir", tmp_path]
    _, out, _ = call(*command, "--parallel-size", 2, "--compare", "--map")
    first = [f"0_a_red_circle{more}.png" for more in ("_p0", "_p0_map", "_p1", "_p1_map", "_no-dola_p0", "_no-dola_p1")]
    assert out.split() == [str(tmp_path / name) for name in first]
    status, out, _ = call("again", tmp_path / "0_a_red_circle_p1.png", "--outdir", tmp_path, "--compare")
    assert status == 0
    again = [f"0_a_red_circle_p1{more}_again.png" for more in ("", "_no-dola")]
    assert out.split() == [str(tmp_path / name) for name in again]
    pixels = {name: Image.open(tmp_path / name).tobytes() for name in [*first, *again]}
    assert pixels["0_a_red_circle_p1.png"] == pixels[again[0]] != pixels["0_a_red_circle_p0.png"]
    assert pixels["0_a_red_circle_no-dola_p1.png"] == pixels[again[1]] != pixels[again[0]]
    assert read_recipe(tmp_path / first[4]).settings.contrast is None
    assert [Image.open(tmp_path / name).size for name in (first[0], first[1])] == [(64, 64), (832, 376)]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    drawing_nothing()
    for more, files in (
        (["a red circle"], f"{tmp_path / first[0]} would"),
        (["a red circle", "--parallel-size", 3], f"{tmp_path / first[0]} and 1 more would"),
        (["a red circle", "--no-dola"], f"{tmp_path / first[4]} would"),
        (["--from", tmp_path / first[2]], f"{tmp_path / again[0]} would"),
    ):
        status, out, err = call("generate", *more, "--outdir", tmp_path)
        assert (status, out) == (2, "")
        assert err.startswith(
            f"janus-dola: error: {files} be replaced: take another folder, or overwrite what is there (--"
        )
        assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwrite_replaces_files_but_follows_no_link(call, tmp_path, drawing_nothing):
    outdir, outside = tmp_path / "out", tmp_path / "outside"
    outdir.mkdir()
    outside.mkdir()
    (outdir / "0_x_p0.png").write_bytes(b"old")
    status, _, _ = call("generate", "x", "--outdir", outdir, "--overwrite")
    assert status == 0
    assert read_recipe(outdir / "0_x_p0.png").prompt == "x"
    (outside / "mine.png").write_bytes(b"mine")
    (outdir / "1_y_p0.png").symlink_to(outside / "mine.png")
    (outdir / "1_z_p0.png").symlink_to(outside / "not-yet.png")
    (outdir / "1_f_p0.png").mkdir()
    drawing_nothing()
    for name, fault in (("y", "is a link, which is not followed"), ("z", "is a link"), ("f", "is a folder")):
        status, out, err = call("generate", "x", name, "--outdir", outdir, "--overwrite")
        assert (status, out) == (2, "")
        assert f"{outdir / f'1_{name}_p0.png'} {fault}" in err
        assert err.count("\n") == 1
    assert [path.read_bytes() for path in outside.iterdir()] == [b"mine"]


def test_what_comes_between_is_not_replaced_either(tmp_path):
    file, link = tmp_path / "a.png", tmp_path / "link.png"
    refuse_existing([file, link], overwrite=False)
    file.write_bytes(b"another program's")
    link.symlink_to(file)
    for path, overwrite in ((file, False), (link, False), (link, True)):
        with pytest.raises(OSError, match=path.name):
            write_new(path, b"ours", overwrite)
    assert file.read_bytes() == b"another program's"
    write_new(file, b"ours", overwrite=True)
    assert file.read_bytes() == b"ours"


def test_a_folder_of_maps_that_is_a_link_stops_a_batch(call, tmp_path):
    (tmp_path / "p.txt").write_text("x\n")
    outdir, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    command = ["batch", "--prompts", tmp_path / "p.txt", "--outdir", outdir, "--parallel-size", 1]
    for name in ("maps", ".janus-dola"):
        outdir.mkdir()
        (outdir / name).symlink_to(outside)
        for more in ([], ["--overwrite"]):
            status, _, err = call(*command, *more)
            assert status == 2
            assert err.splitlines()[-1] == (
                f"janus-dola: error: outdir {outdir} holds a link {name}, which is not followed. "
                "Move it away, or take another --outdir"
            )
        (outdir / name).unlink()
        outdir.rmdir()
    assert list(outside.iterdir()) == []
