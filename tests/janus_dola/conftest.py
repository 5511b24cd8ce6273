import copy
import sys

import pytest
import torch

from janus_dola import JanusDoLa
from janus_dola.cli import app as cli
from janus_dola.engine.decoder import Decoder
from janus_dola.models.checkpoint.hub import public_name
from tests.janus_dola.batch_helpers import FastPipe


@pytest.fixture(scope="session")
def fast(mini):
    """The mini model that draws surfaces of one colour."""
    return FastPipe(mini.model, mini.tokenizer)


@pytest.fixture(scope="session")
def short() -> JanusDoLa:
    """The mini model with pictures of 4 x 4 codes, for tests that ask how images are drawn and not what they show."""
    pipe, side = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32"), 4
    model = pipe.model
    vision, codes = model.model.vision_model.config, model.model.vqmodel.quantize
    vision.num_image_tokens, vision.image_size = side**2, vision.image_size * side // codes.quant_state_dims[0]
    codes.quant_state_dims = [side, side]
    return JanusDoLa(model, pipe.tokenizer)


@pytest.fixture
def drawn_prompts(fast, monkeypatch):
    """The prompts of each batch drawn."""
    calls = []
    generate = FastPipe.generate
    monkeypatch.setattr(
        FastPipe,
        "generate",
        lambda self, prompts, *rest, **more: calls.append(prompts) or generate(self, prompts, *rest, **more),
    )
    return calls


@pytest.fixture
def room_for_one_slot(monkeypatch):
    """Memory for decoders with one slot, and no more."""
    make = Decoder.__init__

    def for_one(self, image_model, weights, key, *rest):
        if key.slots > 1:
            raise torch.OutOfMemoryError
        make(self, image_model, weights, key, *rest)

    monkeypatch.setattr(Decoder, "__init__", for_one)


@pytest.fixture
def call(monkeypatch, capsys, mini):
    """Runs the command line in this process on the mini model; returns exit status, stdout and stderr."""

    def load(cls, model, device=None, dtype=None, revision=None, quantize=None):
        pipe = copy.copy(mini)
        pipe.model_name, pipe.revision = public_name(model), revision
        return pipe

    monkeypatch.setattr(JanusDoLa, "from_pretrained", classmethod(load))

    def run(*arguments, app=cli.app):
        monkeypatch.setattr(sys, "argv", ["janus-dola", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.run(app)
        return stop.value.code or 0, *capsys.readouterr()

    return run
