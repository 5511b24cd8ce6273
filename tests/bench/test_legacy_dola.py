"""The peer decodes what an old transformers decoded."""

import json

import pytest

from bench.speed.peer_legacy_dola import legacy_generate
from tests.bench.record_legacy_dola import FILE, LAYERS, SETTINGS
from tests.janus_dola.text_models import FAMILIES, padded_batch, text_model


@pytest.mark.parametrize("family", FAMILIES)
def test_legacy_gives_the_tokens_of_an_old_transformers(family):
    recorded = json.loads(FILE.read_text(encoding="utf-8"))["tokens"]
    model = text_model(family)
    for layers in LAYERS:
        tokens = model.generate(**padded_batch(), **SETTINGS, custom_generate=legacy_generate, dola_layers=layers)
        assert tokens.tolist() == recorded[f"{family} {layers}"]
