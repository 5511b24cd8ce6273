"""`python -m bench.evaluation`: from the command line to results, resumed and deterministic; GenEval's folders."""

import json
import random
import re
import sys

import pytest
import torch
from PIL import Image

from bench.evaluation import run as run_module
from bench.evaluation.__main__ import app
from bench.evaluation.figures import draw_figures
from bench.evaluation.geneval import read_metadata
from bench.evaluation.measure import Sampling, measure
from bench.evaluation.report import tables
from bench.evaluation.task import ALL_FOUR, check_pictures, mini_task
from bench.mini.pictures import ATTRIBUTES, caption, draw, random_scene
from janus_dola import JanusDoLa
from janus_dola.cli import app as cli
from janus_dola.images.recipe import read_recipe
from janus_dola.settings import DrawSettings
from tests.geneval_scorer import walk
from tests.open_clip_stand_in import BLUE, GREEN, RED, stand_in

GRID = ["--grid", "alpha=0.1", "layers=auto,final", "cfg=5", "temperature=1"]
SMALL = ["--images", 4, "--parallel-size", 2]
CELLS = ["baseline", "auto-alpha0.1", "auto-alpha0.1-matched", "final-alpha0.1"]
ENTRIES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "clock", "count": 1, "color": "red"}], "prompt": "a photo of a red clock"},
    {
        "tag": "counting",
        "include": [{"class": "tie", "count": 2}],
        "exclude": [{"class": "tie", "count": 3}],
        "prompt": "a photo of two ties",
    },
]


@pytest.fixture
def call(monkeypatch, capsys, mini):
    """Runs the command line in this process on the mini model; returns exit status, stdout and stderr."""
    monkeypatch.setattr(JanusDoLa, "from_pretrained", classmethod(lambda cls, *args, **kwargs: mini))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["janus-dola", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.run(app)
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mini):
    """The folder of a small evaluation of the mini model."""
    outdir = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JanusDoLa, "from_pretrained", classmethod(lambda cls, *args, **kwargs: mini))
        patch.setattr(sys, "argv", ["janus-dola", *map(str, [*SMALL, *GRID, "--outdir", outdir])])
        with pytest.raises(SystemExit) as stop:
            cli.run(app)
    assert not stop.value.code
    return outdir


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    return path


def without_times(outdir):
    """All results of a folder, less what was timed."""
    cells = {path.name: json.loads(path.read_text()) for path in (outdir / "cells").iterdir()}
    evaluation = json.loads((outdir / "evaluation.json").read_text())
    for timed in (*cells.values(), evaluation, *evaluation["cells"]):
        del timed["seconds"]
        timed.pop("checksum", None)  # of the seconds, too
    return cells, evaluation


def test_results_of_a_grid(finished):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert [cell["name"].replace("-cfg5-t1", "") for cell in evaluation["cells"]] == CELLS
    measures = [*ATTRIBUTES, ALL_FOUR, "entropy", "top probability", "distinct codes", "differing codes"]
    for cell in evaluation["cells"]:
        assert list(cell["metrics"]) == measures
        for each in cell["metrics"].values():
            assert each["value"]["low"] <= each["value"]["mean"] <= each["value"]["high"]
            assert ("from baseline" in each) == (not cell["is baseline"])
            assert ("from matched" in each) == (cell["layers"] == "auto" and not cell["is matched baseline"])


def test_a_matched_baseline_is_as_sharp_as_its_cell(finished):
    cells = {cell["name"]: cell for cell in json.loads((finished / "evaluation.json").read_text())["cells"]}
    cell, matched = cells["auto-alpha0.1-cfg5-t1"], cells["auto-alpha0.1-cfg5-t1-matched"]
    match = matched["match"]
    assert match["images"] == 4
    assert match["target"] == pytest.approx(cell["metrics"]["entropy"]["value"]["mean"], rel=1e-3)
    assert match["reached"] == pytest.approx(matched["metrics"]["entropy"]["value"]["mean"], rel=1e-3)
    assert match["reached"] == pytest.approx(match["target"], rel=0.05)
    assert matched["temperature"] == match["temperature"] < 1


def test_layers_are_counted_at_every_position(finished):
    for cell in json.loads((finished / "evaluation.json").read_text())["cells"]:
        raster = cell["raster"]
        if cell["layers"] == "auto" and not cell["is matched baseline"]:
            assert raster["layers"] == [2, 4, 6]
            assert torch.tensor(raster["counts"]).sum(0).tolist() == [4] * 64  # images
            assert (torch.tensor(raster["jsd"]) <= 0.6932 * torch.tensor(raster["counts"]) + 1e-4).all()
        else:
            assert raster["layers"] == raster["counts"] == raster["jsd"] == []


def test_the_tables_have_a_row_for_each_cell(finished):
    text = (finished / "tables.md").read_text()
    assert text == tables(json.loads((finished / "evaluation.json").read_text()))
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("|  |")]
    assert len(rows) == 2 * len(CELLS)  # of the scores, and of sharpness and diversity
    assert len([line for line in rows if re.match(r"\| baseline at temperature [\d.]+, matched to auto", line)]) == 2


def test_every_figure_shows_something(finished, tmp_path):
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert {path.stem for path in finished.glob("*.png")} == {"heat_maps", "entropy", "layers"}  # with one alpha
    evaluation["grid"]["alpha"].append(0.3)
    evaluation["cells"] += [cell | {"alpha": 0.3} for cell in evaluation["cells"][1:]]
    for path in draw_figures(evaluation, tmp_path):
        with Image.open(path) as figure:
            assert min(figure.size) > 200
            assert len(figure.convert("RGB").getcolors(1 << 24)) > 20
            assert figure.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert (tmp_path / "alpha.png").exists()


def test_an_interrupted_evaluation_goes_on_where_it_stopped(call, finished, tmp_path, monkeypatch):
    """Finished cells are kept and not drawn again; the result is that of an evaluation that was not interrupted."""
    measured, real = [], run_module.measure

    def until_the_third(*arguments):
        measured.append(arguments)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(run_module, "measure", until_the_third)
    assert call(*SMALL, *GRID, "--outdir", tmp_path)[0] == 130
    kept = sorted((tmp_path / "cells").iterdir())
    assert [path.stem for path in kept] == ["auto-alpha0.1-cfg5-t1", "baseline-cfg5-t1"]
    content = [path.read_bytes() for path in kept]
    status, *_ = call(*SMALL, *GRID, "--outdir", tmp_path)
    assert status == 0
    assert [path.read_bytes() for path in kept] == content
    assert without_times(tmp_path) == without_times(finished)


def test_a_finished_evaluation_draws_nothing_again(call, finished, monkeypatch):
    before = without_times(finished)
    monkeypatch.setattr(run_module, "measure", None)
    assert call(*SMALL, *GRID, "--outdir", finished)[0] == 0
    assert without_times(finished) == before


def test_a_folder_with_other_settings_is_refused(call, finished):
    status, out, err = call("--images", 8, "--seed", 1, *GRID, "--parallel-size", 2, "--outdir", finished)
    assert (status, out) == (2, "")
    assert f"outdir {finished} holds an evaluation with other settings: images 4, not 8; seed 0, not 1" in err
    assert err.count("\n") == 1


def test_all_cells_have_the_same_prompts_and_seeds(mini, monkeypatch):
    """Same seeds, same noise: two cells with the same settings draw the same codes, and a seed starts other ones."""
    task = mini_task(2)
    actual = [measure(mini, task, Sampling(DrawSettings(contrast=None), 2, seed)) for seed in (0, 0, 10)]
    for cell in actual:
        del cell["seconds"]
    assert actual[0] == actual[1] != actual[2]


def test_captions_are_the_same_however_many():
    assert mini_task(5).prompts == mini_task(50).prompts[:5]
    assert len(set(mini_task(100).prompts)) > 60


def test_checker_is_right_on_drawn_pictures_and_at_chance_on_shuffled_captions():
    rng = random.Random(5)
    scenes = [random_scene(rng) for _ in range(600)]
    pictures, captions = [draw(scene, rng) for scene in scenes], [caption(scene) for scene in scenes]
    assert sum(check_pictures(pictures, captions)[ALL_FOUR]) >= 0.99 * 600
    rng.shuffle(captions)
    shuffled = {name: sum(right) / 600 for name, right in check_pictures(pictures, captions).items()}
    chances = {"size": 1 / 2, "colour": 1 / 6, "shape": 1 / 4, "background": 1 / 3, ALL_FOUR: 1 / 144}
    for name, chance in chances.items():
        assert shuffled[name] == pytest.approx(chance, abs=0.06), name


def test_genevals_scorer_finds_what_it_reads(call, tmp_path, prompt_file, mini):
    """Walks the folders as GenEval's evaluation/evaluate_images.py does."""
    status, out, _ = call(
        "--prompts", prompt_file, "--parallel-size", 2, "--seed", 3, "--no-match",
        "--grid", "layers=auto alpha=0.2", "--outdir", tmp_path / "out",
    )  # fmt: skip
    assert status == 0
    assert "one folder per cell" in out
    images = tmp_path / "out" / "images"
    assert sorted(path.name for path in images.iterdir()) == ["auto-alpha0.2-cfg5-t1", "baseline-cfg5-t1"]
    drawn = mini.generate([entry["prompt"] for entry in ENTRIES], 2, dola=None, seed=3)
    by_name = {}
    for index, metadata, paths in walk(images / "baseline-cfg5-t1"):
        by_name[index] = metadata
        assert len(paths) == 2
        for k, path in enumerate(paths):
            assert Image.open(path).tobytes() == drawn.images[index][k].tobytes()
            assert read_recipe(path).seed == 3 + 2 * index + k
    assert [by_name[index] for index in range(3)] == ENTRIES


def test_the_recipe_lies_beside_the_images(call, tmp_path, prompt_file):
    call(
        "--prompts", prompt_file, "--parallel-size", 1, "--images", 2, "--no-match", "--grid",
        "cfg=2", "alpha=0.3", "temperature=0.9", "--outdir", tmp_path / "out",
    )  # fmt: skip
    recipe = json.loads((tmp_path / "out/images/auto-alpha0.3-cfg2-t0.9/recipe.json").read_text())
    known = {
        "model": "mini", "revision": None, "images": 2, "parallel_size": 1, "seed": 0, "dtype": "float32",
        "cfg_weight": 2.0, "temperature": 0.9, "sampler": "gumbel",
    }  # fmt: skip
    assert known.items() <= recipe.items()
    own = {"contrast": "dola", "candidate_layers": [2, 4, 6], "alpha": 0.3, "premature_layer": None}
    assert own.items() <= recipe.items()
    assert recipe["prompts"].startswith("evaluation_metadata.jsonl, sha256 ")
    assert recipe["made with"]["torch"] == torch.__version__
    assert json.loads((tmp_path / "out/images/baseline-cfg2-t0.9/recipe.json").read_text())["contrast"] is None
    assert not (tmp_path / "out/images/baseline-cfg2-t0.9/00002").exists()  # --images 2: the first two prompts


def test_the_commit_of_a_repository_is_recorded(call, tmp_path, prompt_file, monkeypatch):
    """The hub's cache keeps each commit in a folder of its name."""
    cached = tmp_path / "models--someone--janus" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    monkeypatch.setattr("bench.evaluation.command.resolve", lambda model, revision: cached)
    call(
        "--model", "someone/janus", "--revision", "main", "--prompts", prompt_file, "--images", 1,
        "--parallel-size", 1, "--no-match", "--grid", "layers=final", "alpha=0", "--outdir", tmp_path / "out",
    )  # fmt: skip
    recipe = json.loads((tmp_path / "out/images/baseline-cfg5-t1/recipe.json").read_text())
    assert (recipe["model"], recipe["revision"]) == ("someone/janus", "0123abc")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "but is empty"),
        ('{"tag": "a", "include": [], "prompt": "x"}\n{', "line 2 is not JSON"),
        ('["a"]\n', 'line 1 is \'["a"]'),
        ('{"tag": "a", "include": [], "prompt": 3}', "line 1 is"),
        ('{"tag": "a", "prompt": "x"}', "line 1 is"),
    ],
)
def test_prompt_files_that_are_not_genevals(tmp_path, content, problem):
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"must hold one \{\"tag\": .* a line") as error:
        read_metadata(path)
    assert problem in str(error.value)


def test_clip_score_is_100_times_the_cosine(call, tmp_path, prompt_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", stand_in({"bench": RED, "clock": GREEN, "ties": BLUE}))
    status, out, _ = call(
        "--prompts", prompt_file, "--parallel-size", 1, "--no-match", "--clip", "Tiny:here", "--outdir",
        tmp_path / "out",
    )  # fmt: skip
    assert status == 0
    assert "CLIP score" in out
    values = json.loads((tmp_path / "out/cells/baseline-cfg5-t1.json").read_text())["values"]["CLIP score"]
    for index, score in enumerate(values):
        image = Image.open(tmp_path / f"out/images/baseline-cfg5-t1/{index:05}/samples/00000.png")
        pixel = torch.tensor(image.resize((1, 1)).getpixel((0, 0))) / 255.0
        assert score == pytest.approx(100 * float(pixel[index] / pixel.norm()), abs=1e-3)
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["judge"] == "Tiny:here"


def test_without_matplotlib_nothing_is_drawn(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = call(*SMALL, "--outdir", tmp_path / "out")
    assert status == 2
    assert err == "janus-dola: error: drawing figures needs matplotlib: pip install 'janus-dola[plot]'\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "alpha=2"], "alpha must lie in [0, 1], got 2.0"),
        (["alpha=0", "size=3"], "grid must be of KEY=VALUE,VALUE,... with KEY of layers, alpha, cfg, temperature"),
        (["--images", "5"], "images must be a multiple of parallel_size, 4, got 5"),
        (["--images", "0"], "images must be a multiple of parallel_size, 4, got 0"),
        (["--parallel-size", "0"], "parallel_size must be an int >= 1, got 0"),
        (["--images", "4", "--seed", "-1"], "seed must be an int >= 0, got -1"),
        (["--images", "4", "--revision", "main"], "revision goes with a repository on the hub, not with 'mini', got 'main'"),
        (["--model", "other"], "prompts must be given for the model 'other'"),
        (["--clip", "Tiny:here"], "clip goes with prompts"),
        (["--prompts", "missing.jsonl"], "No such file"),
        (["--prompts", "evaluation_metadata.jsonl", "--images", "16"], "images must not ask for more prompts than"),
    ],
)  # fmt: skip
def test_wrong_requests_end_in_one_line_before_anything_is_drawn(
    call, tmp_path, prompt_file, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation_metadata.jsonl"]
