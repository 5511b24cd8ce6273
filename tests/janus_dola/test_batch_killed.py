import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from janus_dola.batch.folder import PARTIAL, digest
from tests.janus_dola.batch_helpers import SHAPES, lines, pictures, without_seconds

DRIVER = Path(__file__).parent / "batch_driver.py"
KILLS = int(os.environ.get("KILLS", "5"))  # 20 take some minutes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
def test_a_run_killed_at_random_moments_ends_like_an_undisturbed_one(tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"prompts": SHAPES * -(-KILLS // 5)}))
    images = 2 * len(SHAPES) * -(-KILLS // 5)
    seed = random.randrange(10**6)
    print(f"moments of seed {seed}")
    ended = subprocess.run(
        [sys.executable, DRIVER, prompts, tmp_path / "undisturbed", tmp_path / "killed", str(seed), str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    print(report)
    assert [moment["killed"] for moment in report["moments"]] == [True] * KILLS
    assert any(moment["partial"] for moment in report["moments"]), "no kill was inside a file"
    assert any(moment["torn"] for moment in report["moments"]), "no kill was inside the manifest"
    assert report["last"] == 0
    expected = pictures(tmp_path / "undisturbed")
    assert len(expected) == 2 * images
    assert pictures(tmp_path / "killed") == expected
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "undisturbed")
    assert [line["image"] for line in lines(tmp_path / "killed")] == list(range(images))
    for line in lines(tmp_path / "killed"):
        assert line["digest"] == digest(expected[line["file"]])
        assert line["map_digest"] == digest(expected[line["map"]])
    assert not (tmp_path / "killed" / PARTIAL).exists()
