"""Lenses on text, at tiny sizes: the scores are the model's own, and a record becomes a table."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.experiments import text_lens
from janus_dola.contrasts import DoLaConfig
from janus_dola.text.language_model import find_text_model, text_head
from janus_dola.training.lens_training import LensSettings
from tests.janus_dola.text_models import text_model


def by_letters(text: str) -> SimpleNamespace:
    """Stands for a tokenizer."""
    return SimpleNamespace(input_ids=[3 + ord(letter) % 90 for letter in text])


def test_facts_have_one_right_continuation():
    made = text_lens.facts()
    assert len(made) == 308
    assert len({fact.prompt for fact in made}) == 308
    assert all(len(set(fact.continuations)) == 3 for fact in made)
    assert made == text_lens.facts()


def test_plain_scores_are_those_of_the_model():
    model = text_model("Llama")
    texts = [[("abc", "de"), ("abc", "fgh")], [("x", "yz")]]
    words = text_lens.read(model, by_letters, texts, [2, 6])
    head = text_head(model, find_text_model(model))
    plain, truncated = text_lens.log_probabilities(
        head, {}, words, [text_lens.Setting(), text_lens.Setting(DoLaConfig(alpha=1, premature_layer="final"))], 6
    )
    expected, top = [], []
    for prompt, text in (pair for together in texts for pair in together):
        ids = torch.tensor([by_letters(prompt + text).input_ids])
        log_q = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1].detach()
        chosen = ids[0, len(prompt) :, None]
        expected += log_q.gather(1, chosen)[:, 0].tolist()
        top += (log_q.argmax(-1) == chosen[:, 0]).tolist()
    assert plain == pytest.approx(expected, abs=1e-4)
    e = text_lens.OF_PLAIN
    assert truncated == pytest.approx(
        [math.log(e * math.exp(log_q) + (1 - e) * first) for log_q, first in zip(expected, top, strict=True)], abs=1e-4
    )


def test_measures_of_a_fact():
    log_p = np.log([0.5, 0.5, 0.2, 0.9])  # the right one has two tokens
    values = text_lens.measures(log_p, np.array([[2, 1, 1]]))
    assert values["mass"] == pytest.approx([0.25 / 1.35])
    assert values["margin"] == pytest.approx([math.log(0.5 / 0.9)])
    assert values["right"].tolist() == [0.0]


def test_a_whole_run_becomes_a_table(monkeypatch):
    monkeypatch.setattr(text_lens, "_TOKENS", 6)
    record = text_lens.measure(
        text_model("Llama"), by_letters, text_lens.facts()[:8], ["one two", "so it goes"], (2, 4), LensSettings(4, 3, 8)
    )
    assert all(after < before for before, after in record["nats"].values())
    made = {"torch": "2", "transformers": "5", "device": "CPU"}
    assert text_lens.table(made | json.loads(json.dumps(record))).count("\n|") == 2 + len(record["cells"])
    assert record["cells"]["plain"]["over plain"]["right"] == {"mean": 0, "low": 0, "high": 0}
