"""Every number of slots and every window draws what one code a pass drew with transformers' own blocks."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.jobs import Job, JobQueue
from janus_dola.engine.plan import make_plan
from janus_dola.engine.slot_runner import SlotRunner
from janus_dola.settings import DrawSettings
from tests.janus_dola.recorded import PROMPTS, SEED, SETTINGS, assert_as_recorded, recorded

RECORDED = recorded()
FIELDS = ("tokens", "premature_layers", "jsd")


@settings(max_examples=5)
@given(
    name=st.sampled_from(list(SETTINGS)),
    window=st.sampled_from([1, 2, 4, 8, 16, 32]),
    slots=st.sampled_from([1, 3, 8]),
    order=st.permutations(range(len(PROMPTS))),
)
@example(name="alpha 0.1, T 1.0, cfg 5.0", window=8, slots=3, order=[3, 1, 4, 0, 2])
@example(name="baseline, T 1.0, cfg 5.0", window=1, slots=3, order=[0, 1, 2, 3, 4])
@example(name="alpha 0.1, T 0.0, cfg 5.0", window=32, slots=8, order=[0, 1, 2, 3, 4])
def test_images_are_those_recorded(mini, name, window, slots, order):
    """With fewer slots than images they join whenever another one is done."""
    look = SETTINGS[name]
    jobs = [PROMPTS[i] for i in order]
    planned = {key: look[key] for key in ("dola", "temperature", "cfg_weight")}
    seeds = [SEED + i for i in order]
    images = draw(mini, jobs, seeds, window, slots, **planned)
    back = torch.tensor(order).argsort()
    tokens, layers, jsd = (torch.stack([getattr(image, key) for image in images])[back] for key in FIELDS)
    assert_as_recorded(tokens, layers, jsd, RECORDED[name])
    passes = [image.passes for image in images]
    assert passes == [63] * len(PROMPTS) if window == 1 else max(passes) <= 63


def draw(pipe, prompts, seeds, window, slots, dola, **look):
    """The codes of images with seeds of their own, at most so many at once."""
    settings = DrawSettings(contrast=dola, **look)
    plan = make_plan(pipe.image_model, settings)
    params = settings.sampling_params(plan.layers)
    jobs = [Job(i, i, 0, pipe.encode(prompt)[0], seeds[i], params) for i, prompt in enumerate(prompts)]
    drawn = pipe.engine.draw(JobQueue(jobs), plan, window, slots)
    return [codes for _, codes in sorted(drawn, key=lambda image: image[0].index)]


@pytest.mark.parametrize("weight", [2.0, 5.0, 8.0])
def test_layers_drawn_are_those_of_the_model_in_float64(mini, weight):
    """Though JSD lies within 6e-8 of ln 2, where float32 has no steps left, at most codes."""
    settings = {"dola": DoLaConfig([1, 2, 3, 4, 5, 6, 7]), "cfg_weight": weight}
    drawn = mini.generate(PROMPTS[:3], 2, seed=SEED, **settings)
    wide = JanusDoLa(copy.deepcopy(mini.model).double(), mini.tokenizer)
    assert torch.equal(drawn.premature_layers, wide.scores(PROMPTS[:3], drawn.tokens, **settings).premature_layers)


def test_the_window_saves_passes(mini):
    passes = {window: mini.generate(PROMPTS, seed=SEED, window=window).passes.float().mean() for window in (1, 4, 8)}
    assert passes[1] == 63
    assert passes[4] < 63 / 1.7
    assert passes[8] < passes[4]


@pytest.mark.parametrize("guesses", ["of nothing", "all wrong", "all right"])
def test_codes_do_not_depend_on_the_guesses(mini, monkeypatch, guesses):
    """And with right ones every pass decides W codes."""
    expected = mini.generate(PROMPTS[0], seed=SEED, window=1)
    advance = SlotRunner.advance

    def guess(runner):
        slots = runner.decoder.slots
        behind = torch.arange(slots.tokens.shape[1]) >= slots.decided.unsqueeze(1)
        right = torch.nn.functional.pad(expected.tokens[0], (0, slots.tokens.shape[1] - 64))
        wrong = {"of nothing": torch.zeros_like(right), "all wrong": (right + 1) % 512, "all right": right}[guesses]
        slots.tokens = torch.where(behind, wrong, slots.tokens)
        return advance(runner)

    monkeypatch.setattr(SlotRunner, "advance", guess)
    out = mini.generate(PROMPTS[0], seed=SEED, window=8)
    assert torch.equal(out.tokens, expected.tokens)
    assert out.passes.item() == {"of nothing": 63, "all wrong": 63, "all right": 8}[guesses]
