"""`janus-dola again` gives the bytes of a file once more, from whatever call it came; or it says why not."""

import copy
import queue
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.batch import RunSettings, run_batch
from janus_dola.cli import app as cli
from janus_dola.engine import capacity, ordered_images
from janus_dola.engine.engine import Engine
from janus_dola.images.recipe import Recipe, read_recipe
from janus_dola.serve import engine_thread
from janus_dola.serve.engine_thread import EngineThread
from janus_dola.serve.metrics import Metrics
from janus_dola.serve.requests import ImagesRequest, Reader
from janus_dola.serve.responses import ResponseWriter
from janus_dola.settings import DrawSettings

PROMPT = "a red circle"
SETTINGS = [DrawSettings(contrast=DoLaConfig(alpha=0.001)), DrawSettings(contrast=None, top_k=50, cfg_weight=1)]


@pytest.fixture(scope="module")
def loaded(mini):
    """The mini model as it is loaded in each dtype; nothing changes these."""
    load = JanusDoLa.from_pretrained
    return {"float32": mini, **{dtype: load("mini", "cpu", dtype) for dtype in ("float16", "bfloat16")}}


@pytest.fixture
def again(monkeypatch, capsys, loaded, tmp_path):
    """Runs `janus-dola again FILE`, and returns the new file."""
    monkeypatch.setattr(JanusDoLa, "from_pretrained", classmethod(lambda cls, model, device, dtype, *_: loaded[dtype]))

    def run(file):
        monkeypatch.setattr(sys, "argv", ["janus-dola", "again", str(file), "--outdir", str(tmp_path / "again")])
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.app)
        assert not stop.value.code, capsys.readouterr().err
        return tmp_path / "again" / f"{file.stem}_again.png"

    return run


@pytest.fixture
def no_tiles(monkeypatch):
    """Lets "auto" stand for the same windows on every processor."""
    monkeypatch.setattr(capacity, "has_amx", lambda: False)


@pytest.fixture
def quick_pictures(monkeypatch):
    """Makes pictures by hand: convolutions in 16 bits take seconds on a CPU, and pixels follow from the codes alone."""

    def start(image_model, tokens):
        low, high = (tokens % 256).byte().view(8, 8).numpy(), (tokens // 256).byte().view(8, 8).numpy()
        return lambda: Image.fromarray(np.stack([low, high, low], -1))

    monkeypatch.setattr(ordered_images, "start_pixels", start)
    monkeypatch.setattr(engine_thread, "start_pixels", start)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_files_of_a_call_with_several_images(dtype, loaded, again, no_tiles, quick_pictures, tmp_path):
    """In bfloat16 the image alone would have another window, 16 for 4, and other bits; on some processors by its rows."""
    for settings in SETTINGS[: 1 if dtype == "bfloat16" else 2]:
        drawn = loaded[dtype].generate(PROMPT, 3, settings, seed=5).drawn[0][1]
        file = drawn.save(tmp_path / f"{settings.top_k}.png")
        assert (drawn.recipe.slots, drawn.recipe.window) == ((3, 4) if dtype == "bfloat16" else (None, "auto"))
        assert again(file).read_bytes() == file.read_bytes()


def test_files_of_batch_and_server_keep_the_slots_of_16_bits(loaded, again, no_tiles, quick_pictures, tmp_path):
    pipe = loaded["bfloat16"]
    run_batch([PROMPT], tmp_path / "run", RunSettings(parallel_size=2, image_format="png"), pipe=pipe)
    first, _ = sorted((tmp_path / "run").glob("*.png"))
    assert (read_recipe(first).slots, read_recipe(first).window) == (2, 8)
    assert again(first).read_bytes() == first.read_bytes()

    reader, events = Reader(pipe, ["mini"]), queue.Queue()
    parsed = reader.read(ImagesRequest(prompt=PROMPT, seed=3, n=2), events.put)
    thread = EngineThread(pipe.engine, 4, reader.longest, 8, Metrics())
    thread.ask(parsed.images)
    images = [events.get(timeout=60) for _ in range(2)]
    thread.close()
    served = {}
    writer = ResponseWriter(parsed, "mini", reader.size, reader.image_model)
    writer.entry(images[0], lambda content, ending: served.setdefault(ending, content))
    (tmp_path / "served.png").write_bytes(served["png"])
    assert (read_recipe(tmp_path / "served.png").slots, read_recipe(tmp_path / "served.png").window) == (2, 8)
    assert again(tmp_path / "served.png").read_bytes() == served["png"]


def test_where_memory_has_no_room_for_the_slots_a_warning_says_so(mini, request, monkeypatch):
    expected = mini.generate(PROMPT, seed=4).tokens[0, 0]
    monkeypatch.setattr(mini, "engine", Engine(mini.image_model))  # which keeps the limit that is learnt here
    request.getfixturevalue("room_for_one_slot")
    with pytest.warns(UserWarning, match="memory has no room for 4 slots, as this image was drawn in"):
        (drawn,) = mini.stream(PROMPT, seed=4, slots=4)
    assert torch.equal(drawn.tokens, expected)
    for slots in (0, 1.5, True, 10**6):
        with pytest.raises(ValueError, match=f"slots must be None or an int in 1 .. 65536, got {slots}"):
            mini.stream(PROMPT, slots=slots)


def train(pipe):
    pipe.image_model.blocks[3].self_attn.v_proj.weight.data *= 1.001


def train_the_head(pipe):
    pipe.image_model.image_head[-1].weight.data[:, ::2] += 0.01


def round_and_back(pipe):
    pipe.to(dtype="bfloat16").to(dtype="float32")


def round_by_hand(pipe):
    pipe.model.bfloat16().float()


def merge(pipe):
    """As an adapter that is merged changes one matrix of many."""
    pipe.image_model.blocks[5].mlp.up_proj.weight.data += 1e-3


@pytest.mark.parametrize("change", [train, train_the_head, round_and_back, round_by_hand, merge])
def test_weights_that_have_changed_have_another_fingerprint(change, mini):
    pipe = JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)
    change(pipe)
    assert pipe.recipe(DrawSettings()).weights != mini.recipe(DrawSettings()).weights


def test_weights_that_have_changed_are_told(again, mini, quick_pictures, tmp_path):
    pipe = JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)
    pipe.model_name = "mini"
    round_and_back(pipe)
    file = pipe.generate(PROMPT).drawn[0][0].save(tmp_path / "changed.png")
    with pytest.warns(
        UserWarning, match=r"not the image again: it was drawn with other weights than .*'mini', float32"
    ):
        again(file)


def test_arithmetic_that_loading_does_not_give_is_told(again, mini, quick_pictures, tmp_path):
    """A model in float16 that nobody packed computes in float16; the command packs it, and computes in float32."""
    pipe = JanusDoLa(copy.deepcopy(mini.model).half(), mini.tokenizer)
    pipe.model_name = "mini"
    file = pipe.generate(PROMPT).drawn[0][0].save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="not the image again: it was computed in float16, .* computes in float32"):
        again(file)


def test_the_same_weights_have_one_fingerprint_however_they_are_stored(loaded, mini):
    of = {dtype: pipe.recipe(DrawSettings()).weights for dtype, pipe in loaded.items()}
    copied = JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)
    copied.generate(PROMPT)  # merges matrices in place
    assert copied.recipe(DrawSettings()).weights == of["float32"] != of["bfloat16"]
    assert copied.to(dtype="bfloat16").recipe(DrawSettings()).weights == of["bfloat16"]
    plain = JanusDoLa(copy.deepcopy(mini.model).half(), mini.tokenizer)
    assert plain.recipe(DrawSettings()).weights == of["float16"]


def test_recipes_of_old_are_read():
    new = Recipe("mini", PROMPT, 3, DrawSettings(), "float32", slots=4, window=8, weights="0123abcd")
    assert Recipe.from_json(new.to_json()) == new
    old = new.to_json().replace(', "slots": 4', "").replace(', "weights": "0123abcd"', "")
    assert Recipe.from_json(old) == replace(new, slots=None, weights=None)
    with pytest.raises(ValueError, match="slots must be None or an int in 1 .. 65536, got 0"):
        Recipe.from_json(new.to_json().replace('"slots": 4', '"slots": 0'))
