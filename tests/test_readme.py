"""What the README says is what was measured and what runs."""

import json
import re
import sys
from pathlib import Path

import pytest

from janus_dola import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_scores_are_those_of_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import score_mini

    results = json.loads((ROOT / "bench" / "results" / "mini_scores.json").read_text(encoding="utf-8"))
    assert README.split(score_mini.MARKERS[0])[1].split(score_mini.MARKERS[1])[0] == score_mini.table(results)


def test_the_mini_model_draws_what_its_captions_say():
    results = json.loads((ROOT / "bench" / "results" / "mini_scores.json").read_text(encoding="utf-8"))
    baseline = results["scores"]["baseline"]
    assert results["settings"]["images"] == 200
    assert min(baseline[name] for name in ("size", "colour", "shape", "background")) >= 0.95, baseline


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_commands_exist(monkeypatch, capsys):
    for command in re.findall(r"^    janus-dola (\w+)", README, re.MULTILINE):
        monkeypatch.setattr(sys, "argv", ["janus-dola", command, "--help"])
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.app)
        assert stop.value.code in (None, 0), command
        assert "Usage" in capsys.readouterr().out
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= set(targets)
