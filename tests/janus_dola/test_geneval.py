"""`janus-dola geneval` and `clip`: what is measured on the images of a batch run."""

import json
import sys

import pytest
from PIL import Image

from janus_dola.batch import RunSettings, run_batch
from janus_dola.batch.folder import with_checksum
from janus_dola.batch.manifest import MANIFEST
from janus_dola.cli import app as cli
from janus_dola.images.recipe import read_recipe
from tests.geneval_scorer import walk
from tests.open_clip_stand_in import BLUE, GREEN, RED, stand_in

ENTRIES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "clock", "count": 1, "color": "red"}], "prompt": "a photo of a red clock"},
    {"tag": "counting", "include": [{"class": "tie", "count": 2}], "exclude": [], "prompt": "a photo of two ties"},
]


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["janus-dola", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.app)
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def draw(fast, tmp_path):
    """Draws prompts into a folder, two images of each."""

    def run(entries=ENTRIES, image_format="png", name="drawn"):
        prompts = tmp_path / "evaluation_metadata.jsonl"
        prompts.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        run_batch(prompts, tmp_path / name, RunSettings(parallel_size=2, image_format=image_format, seed=3), pipe=fast)
        return tmp_path / name

    return run


pytestmark = pytest.mark.filterwarnings("ignore:.*keys that set nothing are kept in the manifest")


def test_genevals_scorer_finds_what_it_reads(call, draw, tmp_path):
    """As its scorer finds it."""
    drawn = draw()
    status, out, err = call("geneval", drawn, "--outdir", tmp_path / "out")
    assert (status, out, err) == (0, f"6 images of 3 prompts in {tmp_path / 'out'}\n", "")
    by_index = {}
    for index, metadata, paths in walk(tmp_path / "out"):
        by_index[index] = metadata
        assert len(paths) == 2
        for k, path in enumerate(paths):
            recipe = read_recipe(path)
            assert (recipe.prompt, recipe.seed) == (metadata["prompt"], 3 + 2 * index + k)
    assert [by_index[index] for index in range(3)] == ENTRIES


def test_an_image_that_is_not_as_it_was_drawn_is_left_out_and_counted(call, draw, tmp_path):
    drawn = draw()
    (drawn / "1_a_photo_of_a_red_clock_p0.png").write_bytes(b"")
    status, out, err = call("geneval", drawn, "--outdir", tmp_path / "out")
    assert status == 1
    assert out.startswith("5 images of 3 prompts")
    assert "1 images are missing" in err
    assert [path.name for path in (tmp_path / "out/00001/samples").iterdir()] == ["00001.png"]


def test_an_image_that_failed_is_left_out_and_counted(call, draw, tmp_path):
    drawn = draw()
    first, *others = (drawn / MANIFEST).read_bytes().splitlines(keepends=True)
    failed = json.dumps(with_checksum({**json.loads(first), "file": None, "map": None, "error": "out of memory"}))
    (drawn / MANIFEST).write_bytes(failed.encode() + b"\n" + b"".join(others))
    status, out, err = call("geneval", drawn, "--outdir", tmp_path / "out")
    assert (status, out.startswith("5 images of 3 prompts"), "1 images are missing" in err) == (1, True, True)


def test_what_geneval_cannot_read_is_refused_in_one_line(call, draw, tmp_path):
    def refused(folder, outdir="out"):
        status, out, err = call("geneval", folder, "--outdir", tmp_path / outdir)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    assert "prompt 0 has no tag and include" in refused(draw([{"prompt": "a red circle"}], name="other"))
    assert "must hold images of the format png, which GenEval reads, got jpg" in refused(draw(image_format="jpg"))
    assert "No such file" in refused(tmp_path)
    assert not (tmp_path / "out").exists()
    assert "must be empty, got" in refused(draw(name="png"), "other")


def test_clip_score_is_100_times_the_cosine(call, draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", stand_in({"bench": RED, "clock": GREEN, "ties": BLUE}))
    drawn = draw()
    status, out, err = call("clip", drawn, "--model", "Tiny:here", "--device", "cpu")
    assert (status, err) == (0, "")
    *lines, mean = [line.split("\t") for line in out.splitlines()]
    names = sorted(path for path in drawn.glob("*.png"))
    assert [path for _, path in lines] == list(map(str, names))  # no layer maps
    expected = []
    for place, path in enumerate(names):
        with Image.open(path) as image:
            pixel = image.getpixel((0, 0))
        expected.append(100 * pixel[place // 2] / sum(value**2 for value in pixel) ** 0.5)
    assert [float(score) for score, _ in lines] == pytest.approx(expected, abs=6e-3)
    assert float(mean[0]) == pytest.approx(sum(expected) / 6, abs=6e-3)
    assert mean[1] == "mean of 6 images of 3 prompts"


def test_clip_that_cannot_be_had(call, draw, tmp_path, monkeypatch):
    def error(model, folder):
        status, out, err = call("clip", folder, "--model", model, "--device", "cpu")
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    drawn = draw(ENTRIES[:1])
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "open_clip", stand_in({"bench": RED}))
    assert "clip must be ARCHITECTURE:WEIGHTS" in error("Tiny", drawn)
    assert "clip must name an architecture of open_clip, got 'Huge'" in error("Huge:here", drawn)
    assert "clip weights 'there' for 'Tiny' could not be loaded: no file there" in error("Tiny:there", drawn)
    assert "must hold images that carry a recipe" in error("Tiny:here", tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert "the CLIP score needs open_clip: pip install 'janus-dola[clip]'" in error("Tiny:here", drawn)
