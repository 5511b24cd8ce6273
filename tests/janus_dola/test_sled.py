"""SLED through every backend and front, compared with a float64 loop that is written from the formulas alone."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.mini.pictures import draw, random_scene
from janus_dola.batch.prompts import PromptSource
from janus_dola.batch.run_settings import RunSettings
from janus_dola.contrasts import DoLaConfig, SLEDConfig
from janus_dola.images.recipe import read_recipe
from janus_dola.kernels import reference
from janus_dola.kernels.contrast import METHODS
from janus_dola.kernels.head import head_scores, sample_codes
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.kernels.types import SamplingParams, SamplingTensors
from janus_dola.serve.requests import ImagesRequest, Reader
from janus_dola.settings import DrawSettings
from janus_dola.text import dola_generate
from tests.janus_dola.text_models import padded_batch, text_model
from tests.kernels.cases import CPU_BACKENDS, random_head, random_hidden, random_matrix, to

pytestmark = pytest.mark.usefixtures("remembered_builtins")  # the interpreter is faster with it
BACKEND = pytest.mark.parametrize("backend", CPU_BACKENDS)


def sled(rate=2.0, scale=10, **others) -> SamplingParams:
    """SLED's params."""
    return SamplingParams("sled", {"evolution_rate": rate, "evolution_scale": scale}, **others)


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / math.fsum(powers) for power in powers]


def cosine(a, b):
    lengths = [max(math.sqrt(math.fsum(x * x for x in v)), 1e-8) for v in (a, b)]
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def loop(layers, rate, scale):
    """One image's scores, the weight of each early layer, and whether rounding may turn the sign of all that counts.

    Args:
        layers: lists of V logits, the final one last.
    """
    final = layers[-1]
    least = sorted(final, reverse=True)[: min(scale, len(final))][-1]
    chosen = [code for code, value in enumerate(final) if value >= least]
    cosines = []
    for early in layers[:-1]:
        difference, p = [a - b for a, b in zip(early, final, strict=True)], softmax(early)
        # p - 1 as the sum of the others, which does not cancel where p is nearly 1
        gradients = [[-math.fsum(p[:x] + p[x + 1 :]) if x == y else p[x] for x in range(len(p))] for y in chosen]
        cosines.append([cosine(difference, gradient) for gradient in gradients])
    estimates = [[max(0.0, each) ** 2 for each in row] for row in cosines]
    largest = max(max(row) for row in cosines)
    weights = [math.fsum(each) for each in estimates]
    total, p_final = math.fsum(weights), softmax(final)
    scores = [-math.inf] * len(final)
    for i, code in enumerate(chosen):
        latent = math.fsum(each[i] for each in estimates) / total if total else 0.0
        scores[code] = final[code] - rate * (p_final[code] - latent)
    return scores, weights, -1e-6 < largest < 1e-3


def assert_is_the_loop(contrasted, logits, rate, scale, tolerance):
    """Scores, and the layer wherever the two largest weights differ clearly."""
    for image in range(logits.shape[1]):
        scores, weights, unclear = loop(logits[:, image].double().tolist(), rate, scale)
        expected, result = torch.tensor(scores, dtype=torch.float64), contrasted.scores[image].double()
        assert torch.equal(result == -math.inf, expected == -math.inf)
        inside = expected > -math.inf
        if unclear:
            continue
        assert (result - expected)[inside].abs().max() <= tolerance
        first, *rest = sorted(weights, reverse=True)
        if first > (rest[0] if rest else 0) + 1e-4:
            assert contrasted.layer[image] == weights.index(first)


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(2, 6),
    images=st.integers(1, 3),
    codes=st.sampled_from([1, 2, 17, 60]),
    scale=st.sampled_from([1, 3, 10, 1000]),
    rate=st.sampled_from([0.0, 0.5, 2.0, 30.0]),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 20.0]),
    shift=st.sampled_from([0.0, 40.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_scores_are_those_of_the_loop(layers, images, codes, scale, rate, sharpness, shift, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(layers, images, codes, generator=g, dtype=torch.float64)
    logits = (logits + shift * torch.randn(layers, 1, 1, generator=g)).to(dtype)
    numbers = torch.full((images,), rate, dtype=dtype), torch.full((images,), scale)
    actual = METHODS["sled"](logits, *numbers)
    assert actual.scores.dtype == actual.divergence.dtype == dtype
    assert_is_the_loop(actual, logits, rate, scale, (1 + rate) * (1e-9 if dtype == torch.float64 else 3e-5))


def test_numbers_by_hand():
    # d = (0, -ln 3), P_0 = (1/2, 1/2): the cosine is negative for code 0 and 1 / sqrt 2 for code 1.
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, math.log(3)]]], dtype=torch.float64)
    actual = METHODS["sled"](logits, torch.tensor([2.0], dtype=torch.float64), torch.tensor([2]))
    assert actual.scores[0].tolist() == pytest.approx([-0.5, math.log(3) + 0.5])
    assert actual.layer.tolist() == [0]
    assert 0 < actual.divergence.item() < math.log(2)


def test_rate_0_leaves_the_final_logits_on_the_top_codes_and_ties_stay_together():
    logits = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(1))
    logits[-1, 0] = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, -1.0])
    scores = METHODS["sled"](logits, torch.zeros(2), torch.tensor([2, 4])).scores
    assert torch.equal(scores[0], logits[-1, 0].masked_fill(logits[-1, 0] < 2, -math.inf))
    assert (scores[1] > -math.inf).sum() == 4
    assert torch.equal(scores[1][scores[1] > -math.inf], logits[-1, 1][scores[1] > -math.inf])


def test_layers_that_are_the_final_one_say_nothing():
    logits = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(1)).repeat(3, 1, 1)
    actual = METHODS["sled"](logits, torch.full((2,), 2.0), torch.full((2,), 9))
    assert torch.allclose(actual.scores, logits[-1] - 2 * logits[-1].softmax(-1))
    assert actual.layer.tolist() == [2, 2]
    assert actual.divergence.tolist() == [0, 0]


@BACKEND
@pytest.mark.parametrize("weight", [None, 5.0])
@pytest.mark.parametrize("projects", [True, False])
def test_every_backend_computes_the_loop(backend, weight, projects):
    head = random_head(17, 9, 70, torch.float32, 3) if projects else random_matrix(17, 70, torch.float32, 3, bias=True)
    hidden = random_hidden(4, 3, 17, torch.float32, seed=5)
    images = 3 if weight else 6
    actual = head_scores(hidden, head, sled(3.0, 12, cfg_weight=weight), backend)
    plain = SamplingTensors.repeat(sled(cfg_weight=weight), images, hidden)
    logits = torch.stack([_logits(each, head, plain.cfg_weight) for each in hidden.double()])
    for image in range(images):
        scores, *_ = loop(logits[:, image].tolist(), 3.0, 12)
        clear = abs(sorted(logits[-1, image].tolist())[-12] - sorted(logits[-1, image].tolist())[-13]) > 1e-4
        expected = torch.tensor(scores)
        if clear:
            assert torch.equal(actual.scores[image] == -math.inf, expected == -math.inf)
            inside = expected > -math.inf
            assert torch.allclose(
                actual.scores[image][inside], expected[inside], atol=5e-3 if backend == "triton" else 1e-3
            )
    assert actual.finite.all()
    assert ((actual.jsd > 0) == (actual.layer < 3)).all()


def _logits(hidden, head, weight):
    head = to(head, torch.float64)
    return reference.guide(
        reference.apply_head(reference.rms_norm(hidden, head.norm_weight, head.norm_eps), head), weight
    )


OF_EACH = [
    sled(), sled(0.0, 1), sled(5.0, 40, temperature=0.0), sled(2.0, 20, cfg_weight=1.0), sled(2.0, 30, top_k=5),
    sled(1.0, 50, top_p=0.5, temperature=0.7), sled(2.0, 10**6, cfg_weight=-2.0),
]  # fmt: skip


@BACKEND
def test_bits_of_an_image_do_not_depend_on_its_neighbours_settings(backend):
    images = len(OF_EACH)
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, images, 16, torch.float32, seed=3)
    together, seeds = SamplingTensors.of(OF_EACH, hidden), torch.arange(images) + 11
    drawn, scored = (
        sample_codes(hidden, head, together, seeds, 3, backend),
        head_scores(hidden, head, together, backend),
    )
    assert torch.equal(drawn.code, gumbel_max(scored.scores, together.temperature, seeds, 3))
    kept = [int((row > -math.inf).sum()) for row in scored.scores]
    assert kept[:5] + kept[6:] == [10, 1, 40, 20, 5, 50]
    assert 1 <= kept[5] < 50
    for image, params in enumerate(OF_EACH):
        alone = head_scores(hidden, head, params, backend)
        for name in ("layer", "jsd", "finite"):
            assert torch.equal(getattr(scored, name)[image], getattr(alone, name)[image])
        if params.truncates:
            assert torch.equal(scored.scores[image], alone.scores[image])


@BACKEND
def test_images_that_are_not_finite_are_flagged(backend):
    head, hidden = random_head(16, 16, 50, torch.float32, seed=1), random_hidden(3, 3, 16, torch.float32, seed=1)
    hidden[0, 1, 5] = math.nan
    assert head_scores(hidden, head, sled(), backend).finite.tolist() == [True, False, True]


@BACKEND
def test_hidden_states_of_the_mini_model(mini, mini_hidden_states, backend):
    head = mini.image_model.head
    actual = head_scores(mini_hidden_states, head, sled(2.0, 50), backend)
    expected = head_scores(mini_hidden_states.double(), to(head, torch.float64), sled(2.0, 50), "reference")
    same = (actual.scores > -math.inf) == (expected.scores > -math.inf)
    assert same.all(-1).float().mean() > 0.7  # rounding decides about the 50th code
    both = (actual.scores > -math.inf) & (expected.scores > -math.inf)
    assert (actual.scores.double() - expected.scores)[both].abs().max() < 5e-2


SLED = SLEDConfig([2, 4, 6], 4.0, 40)


def test_images_do_not_depend_on_the_window_and_carry_their_settings(mini, tmp_path):
    images = [mini.generate("a red circle", 2, contrast=SLED, seed=3, window=window) for window in (1, 4)]
    assert torch.equal(images[0].tokens, images[1].tokens)
    assert set(images[0].premature_layers.unique().tolist()) <= {2, 4, 6, 8}
    assert not torch.equal(images[0].tokens, mini.generate("a red circle", 2, contrast=None, seed=3).tokens)
    (file, *_) = images[0].save(tmp_path)
    recipe = read_recipe(file)
    assert recipe.settings == DrawSettings(contrast=SLED)
    assert json.loads(recipe.to_json()).items() >= {
        "contrast": "sled", "candidate_layers": [2, 4, 6], "evolution_rate": 4.0, "evolution_scale": 40,
    }.items()  # fmt: skip


def test_log_probs_are_those_of_the_scores(mini):
    drawn = mini.generate("a red circle", contrast=SLED, seed=3)
    scores = mini.scores("a red circle", drawn.tokens, contrast=SLED).scores
    log_probs = mini.log_probs("a red circle", drawn.tokens, contrast=SLED)
    expected = scores.log_softmax(-1).gather(-1, drawn.tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(log_probs, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"contrast": "sled", "evolution_rate": -1}, "evolution_rate must be a finite number >= 0, got -1"),
        ({"contrast": "sled", "evolution_rate": 1e39}, r"evolution_rate must lie in 0 .. 1e\+10, got 1e\+39"),
        ({"contrast": "sled", "evolution_scale": 0}, "evolution_scale must be an int in 1 .. 2147483647, got 0"),
        ({"contrast": "sled", "candidate_layers": []}, 'candidate_layers must be "auto" or a list of ints'),
        ({"contrast": "sled", "alpha": 0.1}, "alpha must be left out with contrast sled, since it belongs to dola"),
        ({"evolution_rate": 1.0}, "evolution_rate must be left out with contrast dola, since it belongs to sled"),
    ],
)
def test_what_is_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        DrawSettings().changed(given)


def test_settings_go_through_json_and_lines():
    of_run = DrawSettings(contrast=SLED)
    assert DrawSettings().changed(json.loads(json.dumps(of_run.to_json()))) == of_run
    assert of_run.changed({"evolution_rate": 1}).contrast == SLEDConfig([2, 4, 6], 1.0, 40)
    assert of_run.changed({"dola": True}).contrast == DoLaConfig()
    assert DrawSettings().changed({"contrast": "sled"}).contrast == SLEDConfig()
    assert SLEDConfig().layers_to_read(8) == [1, 2, 3, 4, 5, 6, 7]
    assert "SLED rate 4, top 40, layers 2 4 6" in of_run.summary()


def test_a_prompt_file_may_ask_for_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "contrast": "sled", "evolution_scale": 50}\n{"prompt": "y"}')
    drawings = [record.tasks[0].drawing for record in PromptSource(path).read(RunSettings())]
    assert drawings == [DrawSettings(contrast=SLEDConfig(evolution_scale=50)), DrawSettings()]
    (tmp_path / "a.csv").write_text("prompt,contrast,evolution_rate\nx,sled,3\ny,none,\n")
    drawings = [record.tasks[0].drawing for record in PromptSource(tmp_path / "a.csv").read(RunSettings())]
    assert drawings == [DrawSettings(contrast=SLEDConfig(evolution_rate=3.0)), DrawSettings(contrast=None)]


def test_the_server_takes_it(mini):
    body = ImagesRequest(prompt="a red circle", contrast="sled", evolution_rate=4.0, candidate_layers=[2, 4, 6])
    read = Reader(mini, "mini").read(body, lambda event: None)
    assert read.recipes[0].settings.contrast == SLEDConfig([2, 4, 6], 4.0)
    assert "evolution_rate" in ImagesRequest.model_json_schema()["properties"]


def test_text_is_that_of_a_loop_over_hidden_states():
    model, inputs = text_model("Llama"), padded_batch()
    contrast, layers = SLEDConfig([1, 2, 4], 3.0, 8), [1, 2, 4]
    out = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, custom_generate=dola_generate, contrast=contrast,
        return_dict_in_generate=True,
    )  # fmt: skip
    final = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: final.append(args[0].double()))
    columns, start = out.sequences.shape[1], inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, columns - start, dtype=torch.long)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    states = model(out.sequences, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states
    handle.remove()
    norm, eps, weight = model.model.norm.weight.double(), model.config.rms_norm_eps, model.lm_head.weight.double()
    ended = torch.zeros(3, dtype=torch.bool)
    for column in range(start, columns):
        h = torch.stack([*(states[layer][:, column - 1].double() for layer in layers), final[0][:, column - 1]])
        logits = (h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * norm) @ weight.T
        for row in range(3):
            if ended[row]:
                continue
            scores, weights, _ = loop(logits[:, row].tolist(), 3.0, 8)
            assert out.sequences[row, column] == scores.index(max(scores))
            assert out.premature_layers[row, column - start] == layers[weights.index(max(weights))]
        ended |= out.sequences[:, column] == 2


def test_answers_take_it(mini):
    rng = random.Random(0)
    picture = draw(random_scene(rng), rng)
    answers = [mini.answer(picture, "what is on it?", contrast=each) for each in (SLEDConfig(evolution_rate=0), None)]
    assert answers[0] == answers[1]
    assert mini.answer(picture, "what is on it?", dola=SLEDConfig([2, 4], 50.0, 200))


def test_the_command_line_takes_it(call, tmp_path):
    command = ["generate", "a red circle", "--contrast", "sled", "--evolution-rate", 4, "--candidate-layers", "2,4,6"]
    status, out, _ = call(*command, "--outdir", tmp_path)
    assert status == 0
    assert read_recipe(Path(out.strip())).settings.contrast == SLEDConfig([2, 4, 6], 4.0)
    assert Path(out.strip()).name == "0_a_red_circle_contrast-sled_candidate-layers-2_4_6_evolution-rate-4.0_p0.png"
    for more, message in (
        (["--alpha", 0.2], "alpha must be left out with contrast sled, since it belongs to dola"),
        (["--no-dola"], "contrast must be left out where dola is given, got 'sled'"),
    ):
        status, _, err = call(*command, *more, "--outdir", tmp_path)
        assert (status, err.count("\n")) == (2, 1)
        assert message in err
