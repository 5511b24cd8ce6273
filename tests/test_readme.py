"""What the README and the pages say is what was measured and what runs."""

import json
import re
import sys
from pathlib import Path

import pytest

from bench.evaluation.metrics import METRICS, shown
from bench.evaluation.report import tables
from bench.experiments import score_mini
from janus_dola.cli import app as cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPEED = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
FOLDERS = ("docs", "bench", "examples")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in sorted((ROOT / folder).glob("**/*.md")))]


def test_scores_are_those_of_the_committed_results():
    results = json.loads((ROOT / "bench" / "results" / "mini_scores.json").read_text(encoding="utf-8"))
    assert EVALUATION.split(score_mini.MARKERS[0])[1].split(score_mini.MARKERS[1])[0] == score_mini.table(results)


def test_the_mini_model_draws_what_its_captions_say():
    results = json.loads((ROOT / "bench" / "results" / "mini_scores.json").read_text(encoding="utf-8"))
    baseline = results["scores"]["baseline"]
    assert results["settings"]["images"] == 200
    assert min(baseline[name] for name in ("size", "colour", "shape", "background")) >= 0.95, baseline


CELLS = {  # rows of the table on DoLa, and the cells they show
    "baseline": "baseline-cfg{}-t1",
    "DoLa, alpha 0.1 (default)": "auto-alpha0.1-cfg{}-t1",
    "DoLa, alpha 0.5": "auto-alpha0.5-cfg{}-t1",
    "truncation alone, alpha 0.1": "final-alpha0.1-cfg{}-t1",
    "truncation alone, alpha 0.5": "final-alpha0.5-cfg{}-t1",
    "baseline as sharp as that (temperature 0.13, 0.18)": "auto-alpha0.1-cfg{}-t1-matched",
    "baseline as sharp as that (temperature 0.086, 0.078)": "auto-alpha0.5-cfg{}-t1-matched",
}


def test_what_is_said_of_dola_is_what_was_measured():
    cells = {}
    for folder in ("evaluation", "evaluation_1000"):  # the second has the more images, and comes last
        actual = json.loads((ROOT / "bench" / "results" / folder / "evaluation.json").read_text(encoding="utf-8"))
        cells |= {cell["name"]: cell for cell in actual["cells"]}
    score, variety = (next(m for m in METRICS if m.key == key) for key in ("all four", "differing codes"))
    section = EVALUATION.split("# Does DoLa help pictures?")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "at cfg" not in line]
    for row in rows:
        label, *shares = (part.strip() for part in row.strip("|").split("|"))
        for guidance, right, differing in ((5, shares[0], shares[2]), (1, shares[1], shares[3])):
            cell = cells[CELLS[label].format(guidance)]
            actual = cell["metrics"][score.key]
            expected = shown(score, actual["value"]).split(" [")[0]
            if "from baseline" in actual:
                expected += f" ({shown(score, actual['from baseline'], signed=True)})"
            assert right == expected
            assert differing == shown(variety, cell["metrics"][variety.key]["value"]).split(" [")[0]
            if "temperature" in label:
                assert f"{cell['temperature']:.2g}" in label
    assert len(rows) == len(CELLS)


def test_the_page_for_those_who_train_says_what_was_measured():
    runs = json.loads((ROOT / "bench" / "results" / "grpo.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for run in runs:
        steps, after = run["steps"], run["right"].get(str(len(run["steps"])))
        last = sum(step["right"] for step in steps[-5:]) / 5
        shown = "" if after is None else f"{after:.0%}"
        assert f"| {run['seed']} | {len(steps)} | {run['right']['0']:.0%} | {shown} | {last:.0%} |" in page
        assert all(abs(step["ratio"] - 1) <= 2e-7 for step in steps)
    largest = max(step["largest |delta log p|"] for run in runs for step in run["steps"])
    assert f"the largest |delta log p| of any code is {largest:.1e} in" in " ".join(page.split())


@pytest.mark.parametrize("name", ["evaluation", "evaluation_1000", "evaluation_temperatures"])
def test_tables_are_those_of_the_committed_results(name):
    folder = ROOT / "bench" / "results" / name
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert (folder / "tables.md").read_text(encoding="utf-8") == tables(evaluation)


def test_the_first_screen_says_what_was_measured():
    """The shares of the picture's five settings, and the one ratio."""
    shares = []
    for folder, name in (
        ("evaluation_1000", "baseline-cfg5-t1"), ("evaluation_1000", "final-alpha0.1-cfg5-t1"),
        ("evaluation_1000", "auto-alpha0.1-cfg5-t1"), ("evaluation_1000", "auto-alpha0.5-cfg5-t1"),
        ("evaluation_temperatures", "baseline-cfg5-t0.3"),
    ):  # fmt: skip
        actual = json.loads((ROOT / "bench" / "results" / folder / "evaluation.json").read_text(encoding="utf-8"))
        cell = next(cell for cell in actual["cells"] if cell["name"] == name)
        assert actual["settings"]["images"] == 1000
        shares.append(f"{cell['metrics']['all four']['value']['mean']:.1%}")
    words = " ".join(README.split())
    assert "of 1,000 images each {} (baseline), {}, {}, {} and {} (temperature 0.3)".format(*shares) in words
    ratio = re.search(r"1B, 4 blocks, 1 at once: images, DoLa, plain loop over ours \| ([\d.]+ x)", SPEED).group(1)
    assert f"(1B shape, 4 blocks) is drawn {ratio} as fast as by a plain loop" in words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, place in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        if place:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}, place


@pytest.mark.parametrize("name", ["drawing.md", "batch.md", "training.md"])
def test_python_of_the_pages_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, names = (ROOT / "docs" / name).read_text(encoding="utf-8"), {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(block, names)
    names |= {"prompts": ["a red cross", "a blue circle"], "seeds": [3, 4]}
    table = page.partition("| you write | you get |\n|---|---|\n")[2].partition("\n\n")[0]
    for line in table.splitlines():
        for code in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
            eval(code, names)
    assert blocks
    assert bool(table) == (name == "drawing.md")


def test_commands_exist(monkeypatch, capsys):
    for command in re.findall(r"^    janus-dola (\w+)", README, re.MULTILINE):
        monkeypatch.setattr(sys, "argv", ["janus-dola", command, "--help"])
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.app)
        assert stop.value.code in (None, 0), command
        assert "Usage" in capsys.readouterr().out
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= set(targets)
