"""The tokens that the engine drew when it was first finished: whatever makes it faster must not change them.

`python -m tests.janus_dola.test_recorded_tokens` records them anew, which only a change of the mini model calls for.
"""

import json
from pathlib import Path

import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa

FILE = Path(__file__).with_name("recorded_tokens.json")
PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]  # of different lengths
SETTINGS = {
    "baseline": {"dola": None},
    "DoLa": {"dola": DoLaConfig()},
    "static, alpha 0.3": {"dola": DoLaConfig(alpha=0.3, premature_layer=4), "cfg_weight": 3.0, "temperature": 0.8},
    "greedy": {"dola": DoLaConfig(), "temperature": 0.0},
    "multinomial": {"dola": None, "sampler": "multinomial"},
}


def draw(pipe: JanusDoLa, name: str) -> torch.Tensor:
    return pipe.generate(PROMPTS, parallel_size=2, seed=11, **SETTINGS[name]).tokens


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_those_recorded(mini, name):
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    assert draw(mini, name).tolist() == recorded[name]


if __name__ == "__main__":
    mini = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    FILE.write_text(json.dumps({name: draw(mini, name).tolist() for name in SETTINGS}) + "\n", encoding="utf-8")
