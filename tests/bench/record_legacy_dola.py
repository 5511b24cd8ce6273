"""Records what transformers' own DoLa decodes, in an environment with a version that still has it (4.49.0 here):

python -m tests.bench.record_legacy_dola
"""

import json
from pathlib import Path

import transformers

from tests.janus_dola.text_models import FAMILIES, padded_batch, text_model

FILE = Path(__file__).parent / "legacy_dola.json"
LAYERS = ("low", "high", [0, 2, 5], [3])
SETTINGS = {"max_new_tokens": 16, "do_sample": False}

if __name__ == "__main__":
    tokens = {
        f"{family} {layers}": text_model(family).generate(**padded_batch(), **SETTINGS, dola_layers=layers).tolist()
        for family in FAMILIES
        for layers in LAYERS
    }
    FILE.write_text(json.dumps({"transformers": transformers.__version__, "tokens": tokens}) + "\n", encoding="utf-8")
