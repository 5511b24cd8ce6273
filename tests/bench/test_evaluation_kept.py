"""What an evaluation keeps when it is run again: cells and images that are as they were written, of the same settings."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.evaluation import run as run_module
from bench.evaluation.geneval import read_metadata
from bench.evaluation.grid import Cell, Grid, exact
from bench.evaluation.run import Evaluation, EvaluationSettings
from bench.evaluation.task import geneval_task

BASELINE = Grid(layers=("final",), alpha=(0.0,))
ENTRY = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}


@pytest.fixture
def evaluate(mini, tmp_path, monkeypatch):
    """Evaluates one image and returns how many cells were measured."""
    prompts, measured, measure = tmp_path / "m.jsonl", [], run_module.measure
    prompts.write_text(json.dumps(ENTRY) + "\n")
    monkeypatch.setattr(run_module, "measure", lambda *given: measured.append(given) or measure(*given))

    def run(outdir, seed=0):
        task = geneval_task(prompts, None)
        shared = EvaluationSettings("mini", None, task.source, 1, 1, seed, "float32", None)
        measured.clear()
        Evaluation(mini, task, shared, outdir, match=False).run(BASELINE)
        return len(measured)

    return run


def without_times(outdir):
    """Every file, but for what was timed."""
    result = {path.relative_to(outdir): path.read_bytes() for path in outdir.rglob("*") if path.is_file()}
    return {name: re.sub(rb'"(seconds|checksum)": [^,}]*', b"", content) for name, content in result.items()}


IMAGE, METADATA = "images/baseline-cfg5-t1/00000/samples/00000.png", "images/baseline-cfg5-t1/00000/metadata.jsonl"
CELL = "cells/baseline-cfg5-t1.json"


def test_damaged_cells_and_images_are_made_again(evaluate, tmp_path):
    outdir = tmp_path / "out"
    assert evaluate(outdir) == 1
    assert evaluate(outdir) == 0
    before = without_times(outdir)
    damages = {
        "image gone": lambda: (outdir / IMAGE).unlink(),
        "image cut": lambda: (outdir / IMAGE).write_bytes((outdir / IMAGE).read_bytes()[:-20]),
        "metadata gone": lambda: (outdir / METADATA).unlink(),
        "cell edited": lambda: (outdir / CELL).write_text((outdir / CELL).read_text().replace("[", "[1", 1)),
        "cell cut": lambda: (outdir / CELL).write_text("[]"),
    }  # fmt: skip
    for name, damage in damages.items():
        damage()
        assert without_times(outdir) != before, name
        with pytest.warns(
            UserWarning, match=r"baseline-cfg5-t1\.json, or an image of its cell, is not as it was written"
        ):
            assert evaluate(outdir) == 1
        assert without_times(outdir) == before, name
    (outdir / CELL).unlink()
    assert evaluate(outdir) == 1
    assert without_times(outdir) == before


def test_without_its_settings_a_folder_is_refused(evaluate, tmp_path):
    outdir = tmp_path / "out"
    evaluate(outdir)
    (outdir / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"holds cells, but no settings\.json that says how they were made"):
        evaluate(outdir, seed=1)
    for text in ("[]", "{", "[" * 100_000, "9" * 5000):
        (outdir / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=r"settings\.json must be as an evaluation wrote it: "):
            evaluate(outdir)


def test_cells_of_other_settings_are_not_taken_over(evaluate, tmp_path):
    evaluate(tmp_path / "a")
    (tmp_path / "b" / "cells").mkdir(parents=True)
    evaluate_files = {name: (tmp_path / "a" / name).read_bytes() for name in (CELL, "settings.json")}
    other = json.loads(evaluate_files["settings.json"]) | {"seed": 1}
    (tmp_path / "b" / CELL).write_bytes(evaluate_files[CELL])
    (tmp_path / "b" / "settings.json").write_text(json.dumps(other))
    with pytest.warns(UserWarning, match="measured again"):
        assert evaluate(tmp_path / "b", seed=1) == 1


@settings(max_examples=200)
@given(a=st.floats(0, 1), b=st.floats(0, 1) | st.just(0.1 + 1e-9))
def test_cells_of_different_values_have_different_names(a, b):
    assert (exact(a) == exact(b)) == (a == b)
    assert float(exact(a)) == a
    assert (Cell("auto", a, 5.0, 1.0).name == Cell("auto", b, 5.0, 1.0).name) == (a == b)


def test_names_of_usual_values_are_short():
    assert Cell("auto", 0.1, 5.0, 1.0).name == "auto-alpha0.1-cfg5-t1"
    assert Cell("late", 0.1 + 1e-9, 5.0, 0.35).name == "late-alpha0.100000001-cfg5-t0.35"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tag": "a", "include": [], "prompt": "\\ud800"}', "must be valid Unicode; line 2 is"),
        ("[" * 100_000, "line 2 is not JSON: nested too deeply"),
        (
            '{"tag": "a", "tag": "b", "include": [], "prompt": "x"}',
            "line 2 is not JSON: the key 'tag' stands there twice",
        ),
        ("9" * 5000, "line 2 is not JSON: an integer of 5000 digits"),
        ('"\x9b31m"', "line 2 is '\"\\x9b31m\"'"),
    ],
)
def test_odd_lines_of_genevals_file(tmp_path, line, message):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({**ENTRY, "prompt": "one line\u2028of two"}, ensure_ascii=False) + "\n" + line)
    with pytest.raises(ValueError, match="prompt file") as raised:
        read_metadata(path)
    assert message in str(raised.value)
    path.write_text("\ufeff" + json.dumps({**ENTRY, "prompt": "one line\u2028of two"}, ensure_ascii=False))
    assert read_metadata(path)[0]["prompt"] == "one line\u2028of two"
