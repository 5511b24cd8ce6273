"""The command that measures codes per pass where an image is drawn small first."""

import re

import pytest

pytest.importorskip("transformers.models.glm_image", reason="needs transformers 5")

from bench.experiments import two_rasters


def test_a_model_is_trained_and_its_passes_are_counted(monkeypatch, capsys):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setattr(two_rasters, "SIZES", sizes)
    monkeypatch.setattr(two_rasters, "SETTINGS", ({"temperature": 0.5},))
    two_rasters.main(steps=3, pictures=64, images=1)
    said = capsys.readouterr().out
    assert re.search(r"3 steps: loss [\d.]+ nats", said)
    counts = re.findall(r"window (\d+): ([\d.]+) codes a pass", said)
    assert [window for window, _ in counts] == ["8", "16"]
    assert all(1 <= float(codes) <= int(window) for window, codes in counts)
