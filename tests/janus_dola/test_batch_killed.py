import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.janus_dola.batch_helpers import SHAPES, lines, pictures, without_seconds

DRIVER = Path(__file__).parent / "batch_driver.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
def test_a_run_killed_at_five_random_moments_ends_like_an_undisturbed_one(tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"prompts": SHAPES}))
    seed = random.randrange(10**6)
    print(f"moments of seed {seed}")
    ended = subprocess.run(
        [sys.executable, DRIVER, prompts, tmp_path / "undisturbed", tmp_path / "killed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    print(report)
    assert [moment["killed"] for moment in report["moments"]] == [True] * 5
    assert any(moment["partial"] for moment in report["moments"]), "no kill was inside a file"
    assert any(moment["torn"] for moment in report["moments"]), "no kill was inside the manifest"
    assert report["last"] == 0
    wanted = pictures(tmp_path / "undisturbed")
    assert len(wanted) == 2 * 36
    assert pictures(tmp_path / "killed") == wanted
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "undisturbed")
    assert [line["image"] for line in lines(tmp_path / "killed")] == list(range(36))
    assert not (tmp_path / "killed" / ".partial").exists()
