"""Lenses: trained on a model's own images, read from a file, and never used with a model that they do not belong to."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from janus_dola import DoLaConfig, JanusDoLa, train_lens
from janus_dola.engine.scoring import states_at_codes
from janus_dola.images.recipe import read_recipe
from janus_dola.kernels import reference
from janus_dola.models.lens_file import read_lens
from janus_dola.training.lens_training import LensSettings, LensTraining
from tests.janus_dola.fingerprint import fingerprint

PROMPTS = ["a large red circle on white", "a small blue square on grey"]
QUICK = LensSettings(rank=8, steps=20, batch_size=64)
THROUGH_LENS = DoLaConfig(alpha=0.02, premature_layer=2, beta=1.0, lens="auto")


@torch.no_grad()
def test_the_lens_of_the_mini_model_brings_early_layers_near_to_the_final_one(mini):
    model, weights, layers = mini.image_model, mini.engine.weights.read(), (2, 4, 6)
    tokens = mini.generate(PROMPTS, 2, contrast=None, seed=77).tokens
    lens = read_lens(model, "auto", layers)

    def divergences(states):
        head = weights.head
        logits = [
            reference.apply_head(reference.rms_norm(each, head.norm_weight, head.norm_eps), head) for each in states
        ]
        log_q = torch.stack(logits).log_softmax(-1)
        return torch.stack([(log_q[-1].exp() * (log_q[-1] - each)).sum(-1).mean() for each in log_q[:-1]])

    rows = [(both, codes) for both, images in zip(mini.encode(PROMPTS), tokens, strict=True) for codes in images]
    states = torch.cat([states_at_codes(model, weights, both, codes, layers) for both, codes in rows], 1)
    assert (divergences(lens(states, layers)) < divergences(states) / 3).all()


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_an_image_through_a_lens_is_the_same_in_every_window_and_its_scores_are_those_drawn_from(short, weight):
    settings = {"contrast": THROUGH_LENS, "cfg_weight": weight, "seed": 5}
    expected = short.generate(PROMPTS, 2, window=1, **settings)
    without = short.generate(PROMPTS, 2, **settings | {"contrast": replace(THROUGH_LENS, lens=None)})
    assert not torch.equal(expected.tokens, without.tokens)
    for window in (4, 8):
        assert torch.equal(short.generate(PROMPTS, 2, window=window, **settings).tokens, expected.tokens)
    greedy = short.generate(PROMPTS, contrast=THROUGH_LENS, cfg_weight=weight, temperature=0.0)
    scores = short.scores(PROMPTS, greedy.tokens, contrast=THROUGH_LENS, cfg_weight=weight)
    assert torch.equal(scores.scores.argmax(-1), greedy.tokens)


def test_a_lens_is_trained_written_and_used(short, tmp_path):
    path = tmp_path / "own.safetensors"
    assert all(weight.requires_grad for weight in short.model.model.language_model.parameters())
    before = fingerprint(short.model)
    nats = train_lens(short, PROMPTS, path, layers=[3, 5], images=12, settings=QUICK)
    assert fingerprint(short.model) == before
    assert all(weight.grad is None for weight in short.model.parameters())
    assert list(nats) == [3, 5]
    assert all(after < before for before, after in nats.values())
    assert [each.name for each in tmp_path.iterdir()] == ["own.safetensors"]
    out = short.generate(PROMPTS, contrast=DoLaConfig(premature_layer=3, lens=str(path)), seed=3)
    assert (out.premature_layers == 3).all()
    with pytest.raises(FileExistsError, match="would be replaced"):
        train_lens(short, PROMPTS, path, settings=QUICK)


def test_training_that_was_stopped_goes_on_to_the_same_lens(short, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    monkeypatch.setattr("janus_dola.training.lens_run._STEPS_BETWEEN_NOTES", 6)
    train_lens(short, PROMPTS, whole, images=6, settings=QUICK)
    run, runs = LensTraining.run, []

    def stopped(self, until, *rest):
        runs.append(until)
        if len(runs) == 3:
            raise KeyboardInterrupt
        run(self, until, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(LensTraining, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_lens(short, PROMPTS, parts, images=6, settings=QUICK)
    with pytest.raises(
        ValueError, match=r"seed must be 0 to go on with the training in .*parts.safetensors.part, got 1;"
    ):
        train_lens(short, PROMPTS, parts, images=6, settings=LensSettings(8, 20, 64, seed=1))
    kept = (tmp_path / "parts.safetensors.part").read_bytes()
    (tmp_path / "parts.safetensors.part").write_bytes(kept[:100])
    with pytest.raises(ValueError, match=r"parts.safetensors.part is no training that was stopped"):
        train_lens(short, PROMPTS, parts, images=6, settings=QUICK)
    (tmp_path / "parts.safetensors.part").write_bytes(kept)
    monkeypatch.setattr(type(short), "generate", None)  # its images are there
    train_lens(short, PROMPTS, parts, images=6, settings=QUICK)
    assert parts.read_bytes() == whole.read_bytes()


def test_a_wrong_lens_is_an_error_in_one_line(mini, tmp_path):
    file = mini.image_model.folder / "lens.safetensors"

    def error(pipe: JanusDoLa, lens: str, layer: int = 2) -> str:
        with pytest.raises(ValueError, match="lens") as caught:
            pipe.generate("x", contrast=DoLaConfig(premature_layer=layer, lens=lens))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no /nowhere/lens" in error(mini, "/nowhere/lens")
    assert "is for the layers 2, 4, 6, not for 5" in error(mini, "auto", 5)
    trained = copy.deepcopy(mini)
    trained.model.model.language_model.layers[3].mlp.up_proj.weight.data *= 1.01
    assert "belongs to the weights" in error(trained, "auto")
    short_file = tmp_path / "cut.safetensors"
    short_file.write_bytes(file.read_bytes()[:-100])
    assert f"{short_file} is no lens" in error(mini, str(short_file))
    assert f"{mini.image_model.folder / 'model.safetensors'} is no lens" in error(
        mini, str(mini.image_model.folder / "model.safetensors")
    )
    tensors = load_file(file)
    for name, change in {
        "2.up": lambda up: up[:, 1:].contiguous(), "2.bias": lambda bias: bias * float("nan"), "2.down": lambda down: None
    }.items():  # fmt: skip
        changed = {key: change(each) if key == name else each for key, each in tensors.items()}
        bad = tmp_path / f"{name}.safetensors"
        save_file({key: each for key, each in changed.items() if each is not None}, bad, {"lens": '{"weights": []}'})
        assert f"{bad} is no lens" in error(mini, str(bad))
    unnamed = JanusDoLa(copy.deepcopy(mini.model), mini.tokenizer)
    unnamed.model.name_or_path = ""
    unnamed = JanusDoLa(unnamed.model, mini.tokenizer)
    assert "needs a model that was loaded from a folder" in error(unnamed, "auto")


def test_a_lens_goes_with_weights_that_were_only_rounded(mini):
    for dtype in ("bfloat16", "float16"):
        rounded = JanusDoLa.from_pretrained("mini", dtype=dtype)
        assert rounded.generate("x", contrast=THROUGH_LENS).tokens.shape == (1, 1, 64)


def test_the_command_line_trains_and_draws(call, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    path = tmp_path / "lens.safetensors"
    words = ["--prompts", tmp_path / "prompts.txt", "--outfile", path, "--layers", "2", "--images", 2, "--steps", 5]
    assert call("lens", "mini", *words)[1].startswith("layer 2: ")
    drawing = ["--lens", path, "--beta", 0.5, "--premature-layer", 2, "--outdir", tmp_path / "out"]
    image = call("generate", PROMPTS[0], *drawing)[1].split()[-1]
    recipe = read_recipe(tmp_path / image)
    assert (recipe.settings.contrast.beta, recipe.settings.contrast.lens) == (0.5, path.name)
    assert len(recipe.weights.split()) == 2
    monkeypatch.chdir(tmp_path)
    assert "this is not the image again" not in call("again", image, "--outdir", tmp_path / "again")[2]
    call("lens", "mini", *words, "--seed", 1, "--overwrite")
    with pytest.warns(UserWarning, match="this is not the image again: it was drawn with other weights"):
        call("again", image, "--outdir", tmp_path / "other")
