"""Prompt files as people have them: lone quotes, comments, random seeds, and names that a locale lacks."""

import os
import sys
import warnings

import pytest

from janus_dola.batch import RunSettings, run_batch
from janus_dola.batch.prompts import PromptSource
from janus_dola.images.recipe import read_recipe
from tests.janus_dola.batch_helpers import FastPipe, lines, pictures

ONE = RunSettings(parallel_size=1)
LONE = 'prompt\ta\n"red circle\t1\na blue cross\t2\na green square"\t3\nx\t4\n'
ROW = "but in a .tsv a line is a row"
TWICE = 'a quote that belongs to the words is written twice, in a cell in quotes: "a ""red"" circle"'


def read(tmp_path, name, text):
    """Prompts, and faults of bad ones, with the warnings meanwhile."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records = list(PromptSource(tmp_path / name).read(ONE))
    return [record.fault or record.tasks[0].prompt for record in records], [
        str(each.message) for each in said if each.category is UserWarning
    ]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        (LONE, ['"red circle', "a blue cross", 'a green square"', "x"]),
        ('prompt\ta\n"red circle\t1\nx\t4\n', ['"red circle', "x"]),
        ('a\tprompt\n1\t"red circle\n2\tx\n', ['"red circle', "x"]),
        (
            'prompt\ta\n"say ""hi"" to"\t1\n"Hi" sign\t2\n6" pie\t3\n"A", "B"\t4\n',
            ['say "hi" to', '"Hi" sign', '6" pie', '"A", "B"'],
        ),
        ('prompt\ta\n"red\tcircle"\t1\n"red\t"big"\n', ["red\tcircle", '"red']),  # a tab in quotes, where cells are too many
        (
            'a\tprompt\n1\t"red\ncircle"\n2\tx\n',
            [f"line 2: a quote begins '\"red', and one in line 3 may end it, {ROW}; {TWICE}", "", "x"],
        ),
    ],
)  # fmt: skip
def test_a_line_of_a_tsv_is_a_row_whatever_quotes_it_has(tmp_path, text, prompts):
    for ends in (text, text.replace("\n", "\r\n")):
        assert read(tmp_path, "q.tsv", ends) == (prompts, [])


def test_cells_of_a_csv_may_go_over_lines_but_never_silently_over_rows(tmp_path):
    text = LONE.replace("\t", ",")
    merged = "red circle,1\na blue cross,2\na green square"
    warning = (
        "a cell in quotes goes from line 2 to line 4, and each of these lines might be a row: "
        f"['red circle,1\\na bl...,2\\na green square', '3']; {TWICE}"
    )
    prompts, said = read(tmp_path, "q.csv", text)
    assert prompts == [merged, "x"]
    assert [each.split(": [")[0] for each in said] == [warning.split(": [")[0]]
    assert said[0].endswith(TWICE)
    assert read(tmp_path, "q.csv", 'a,prompt\n1,"red\ncircle"\n2,x\n') == (["red\ncircle", "x"], [])
    lone = f"line 2: a quote begins a cell, and none ends it as far as line 4; {TWICE}"
    for third in ("x,4", 'a "blue" cross,4'):
        rows = f'prompt,a\n"red circle,1\nx,2\n{third}\n'  # a lone quote spoils its own line alone
        assert read(tmp_path, "q.csv", rows) == ([lone, "x", third[:-2]], [])


def test_comments_in_text_are_told(fast, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("# my prompts\na red circle\n // note\n")
    with pytest.warns(UserWarning, match="are prompts like others; there are 2, the first is '# my prompts'") as said:
        assert run_batch(path, tmp_path / "out", ONE, pipe=fast).drawn == 3
    assert len([each for each in said if each.category is UserWarning]) == 1
    path.write_text("a #1 circle\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run_batch(path, tmp_path / "other", ONE, pipe=fast)


def test_a_random_seed_of_a_line_is_another_in_each_folder_and_the_same_in_one(fast, tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    path.write_text("prompt,seed,parallel_size\na,-1,2\nb,random,1\nc,,1\nd,7,1\ne,-1,3\n")
    generate, calls = FastPipe.generate, []

    def dying(self, *arguments, **settings):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *arguments, **settings)

    from janus_dola.batch import Compute

    with monkeypatch.context() as patch:
        patch.setattr(FastPipe, "generate", dying)
        with pytest.raises(KeyboardInterrupt):
            run_batch(path, tmp_path / "a", ONE, Compute(batch_size=2), pipe=fast)
    first = lines(tmp_path / "a")
    summary = run_batch(path, tmp_path / "a", ONE, Compute(batch_size=2), pipe=fast)
    assert (summary.kept, summary.drawn) == (4, 4)
    both = lines(tmp_path / "a")
    assert [line["seed"] for line in both[:4]] == [line["seed"] for line in first]
    a, next_to_a, b, c, d, e, *after_e = (line["seed"] for line in both)
    assert (next_to_a, c, d, after_e) == (a + 1, 3, 7, [e + 1, e + 2])
    assert len({a, b, e}) == 3
    assert all(read_recipe(tmp_path / "a" / line["file"]).seed == line["seed"] for line in both)
    before = pictures(tmp_path / "a")
    assert run_batch(path, tmp_path / "a", ONE, Compute(batch_size=2), pipe=fast, overwrite=True).kept == 8
    assert pictures(tmp_path / "a") == before
    run_batch(path, tmp_path / "b", ONE, pipe=fast)
    assert [line["seed"] for line in lines(tmp_path / "b")][:2] != [a, a + 1]


def test_names_that_the_locale_lacks_are_told_before_anything_is_made(fast, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(os, "fsencode", lambda name: str(name).encode("ascii", "surrogateescape"))
    message = r"name '1_gro\\xdf_p0.jpg' cannot be written; file names here are ascii, by the locale: set PYTHONUTF8=1"
    with pytest.raises(ValueError, match=message):
        run_batch(["a", "groß"], tmp_path / "out", ONE, pipe=fast)
    with pytest.raises(
        ValueError, match=r"model must be valid Unicode, got 'j\\udcc3\\udcbc'; file names here are ascii"
    ):
        RunSettings("j\udcc3\udcbc")
    assert list(tmp_path.iterdir()) == []
