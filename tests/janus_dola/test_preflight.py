"""What is wrong with a command is said in one line, before weights are loaded."""

import json
import os
import shutil
import sys
from unittest.mock import Mock

import huggingface_hub.errors as hub
import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.models.checkpoint.hub import resolve
from janus_dola.settings import DrawSettings


@pytest.fixture
def no_weights(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(JanusDoLa, "from_pretrained", load)


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    """The mini model without its weights."""
    folder = tmp_path_factory.mktemp("described")
    for file in resolve("mini").iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


LONG = "word " * 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--candidate-layers", "8,9"], "candidate_layers must name a layer in 1 .. 7"),
        (["generate", "x", "--premature-layer", "8"], 'premature_layer must lie in 1 .. 7, or be "final" or None, got 8'),
        (["generate", "x", LONG], "prompts must leave room for 64 image tokens: at most 448 tokens each"),
        (["generate", "x", "--negative-prompt", LONG], "must leave room for 64 image tokens"),
        (["generate", "x", "--engine", "graph", "--device", "cpu"], "launch 'graph' needs a CUDA device, got cpu"),
        (["generate", "x", "--alpha", "2"], "alpha must lie in [0, 1], got 2.0"),
        (["generate", "x", "--parallel-size", "0"], "parallel_size must be an int in 1 .. 65536, got 0"),
        (["batch", "--candidate-layers", "8,9"], "candidate_layers must name a layer in 1 .. 7"),
        (["batch", "--engine", "graph", "--device", "cpu"], "launch 'graph' needs a CUDA device, got cpu"),
        (["profile", "--premature-layer", "8"], "premature_layer must lie in 1 .. 7"),
        (["demo", "--device", "gpu"], "device must be one that is here, got 'gpu'"),
    ],
)  # fmt: skip
def test_settings_are_checked_before_weights_are_loaded(
    call, tmp_path, description, no_weights, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("x\n")
    more = ["--prompts", "p.txt"] if arguments[0] == "batch" else []
    status, out, err = call(*arguments, *more, "--model", description)
    assert (status, out) == (2, "")
    assert err.startswith("janus-dola: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["generate", "x"], ["demo"]])
def test_a_folder_that_cannot_be_written_to_is_refused_before_weights_are_loaded(
    call, tmp_path, no_weights, monkeypatch, command
):
    (tmp_path / "file").write_text("mine")
    for name, fault in (("file", "can be made: File exists"), ("file/in", "can be made: Not a directory")):
        status, _, err = call(*command, "--outdir", tmp_path / name)
        assert (status, err) == (2, f"janus-dola: error: outdir {tmp_path / name} must be a folder that {fault}\n")
    status, _, err = call("profile", "--trace", tmp_path / "file" / "pass.json")
    assert (status, err.count("\n"), "file" in err) == (2, 1, True)
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    status, _, err = call(*command, "--outdir", tmp_path)
    assert (status, err) == (2, f"janus-dola: error: outdir {tmp_path} must be a folder that can be written to\n")


def test_what_can_be_drawn_passes_without_a_word(description, recwarn):
    JanusDoLa.check(
        description, "cpu", "fp16", settings=DrawSettings(contrast=DoLaConfig([2, 99])), prompts=["a red circle", ""]
    )
    assert not recwarn.list


@pytest.mark.parametrize("name", ["cuda", "gpu", "mps", "cuda:1"])
@pytest.mark.parametrize(
    ("built", "count", "seen"),
    [
        (None, 0, "sees cpu alone, as it is built without CUDA"),
        ("13.0", 0, "sees cpu alone, as it finds no GPU"),
        ("13.0", 1, "sees cpu, cuda:0"),
    ],
)
def test_a_device_that_is_not_there_is_told_beside_those_that_are(monkeypatch, name, built, count, seen):
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch, "empty", _refusing)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device") as caught:
        JanusDoLa.check("mini", name)
    assert str(caught.value) == (f"device must be one that is here, got '{name}': torch {torch.__version__} {seen}")


def _refusing(*args, **kwargs):
    raise AssertionError("Torch not compiled with CUDA enabled")


def _of_hub(kind):
    return lambda: kind("lines\nof it", response=Mock())  # of whichever HTTP library the hub's client is built on


UNREACHABLE = "is no folder here and was not downloaded before, and the Hugging Face hub cannot be reached: connect"


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("some/janus", _of_hub(hub.RepositoryNotFoundError), "is neither a folder here nor a repository on the"),
        ("some/janus", _of_hub(hub.GatedRepoError), "is gated: ask for access on its page"),
        ("some/janus", _of_hub(hub.RevisionNotFoundError), "has no revision 'v2'"),
        ("some/janus", lambda: hub.LocalEntryNotFoundError("no\nsnapshot"), UNREACHABLE),
        ("some/janus", lambda: hub.OfflineModeIsEnabled("offline"), UNREACHABLE),
        (
            "some/janus",
            lambda: OSError(28, "No space left"),
            "cannot be downloaded from the Hugging Face hub: [Errno 28]",
        ),
        ("mimi", None, "there is no folder 'mimi'"),
        ("./some", None, "there is no folder './some'"),
        ("a/b/c", None, "there is no folder 'a/b/c'"),
        ("~/janus", None, "there is no folder '~/janus'"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "x", "--model"], ["info"]])
def test_each_way_of_having_no_model_has_its_own_line(call, monkeypatch, tmp_path, model, error, message, command):
    def download(*args, **kwargs):
        assert kwargs["revision"] == "v2"
        raise error()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["janus_dola.models.checkpoint.hub"], "snapshot_download", download)
    status, out, err = call(*command, model, "--revision", "v2")
    assert (status, out) == (2, "")
    assert err.startswith("janus-dola: error: model ")
    assert repr(model) in err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "batch", "profile", "demo"])
def test_a_revision_is_what_is_asked_of_the_hub_and_loaded(call, tmp_path, description, monkeypatch, command):
    downloaded, loaded, mini = [], [], JanusDoLa.from_pretrained
    monkeypatch.setattr(
        sys.modules["janus_dola.models.checkpoint.hub"],
        "snapshot_download",
        lambda name, **given: downloaded.append((name, given["revision"])) or description,
    )

    def load(cls, model, device=None, dtype=None, revision=None, quantize=None):
        loaded.append((model, revision))
        if command == "demo":
            raise ValueError("and so on")
        return mini(model, revision=revision)

    monkeypatch.setattr(JanusDoLa, "from_pretrained", classmethod(load))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("x\n")
    more = {"generate": ["x"], "batch": ["--prompts", "p.txt"]}.get(command, [])
    status, _, err = call(command, *more, "--model", "some/janus", "--revision", "v2")
    assert (status, set(downloaded), loaded) == (
        2 if command == "demo" else 0,
        {("some/janus", "v2")},
        [("some/janus", "v2")],
    ), err
    if command == "batch":
        assert json.loads((tmp_path / "out_dola" / "run.json").read_text())["settings"]["revision"] == "v2"
        assert "revision v2, now None" in call(command, *more, "--model", "some/janus")[2]
    if command == "generate":
        drawn = tmp_path / "generated_samples" / "0_x_model-some_janus_revision-v2_p0.png"
        assert call(command, "--from", drawn)[0] == 0
        assert (set(downloaded), loaded[1:]) == ({("some/janus", "v2")}, [("some/janus", "v2")])


def test_a_revision_goes_with_a_repository_only(call, tmp_path, description):
    for model in ("mini", description):
        for command in (["generate", "x", "--model"], ["info"]):
            status, _, err = call(*command, model, "--revision", "main")
            assert status == 2
            assert f"revision goes with a repository on the hub, not with '{model}', got 'main'" in err
