import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.mini.pictures import BACKGROUNDS, COLOURS, SHAPES, SIZES
from janus_dola import DoLaConfig, JanusDoLa, NonFiniteError
from janus_dola.engine.decoder import Decoder
from janus_dola.engine.engine import Engine
from janus_dola.kernels import block as blocks
from janus_dola.kernels.head import head_scores
from janus_dola.kernels.sampling import log_probabilities
from janus_dola.settings import DrawSettings
from tests.kernels.cases import CPU_BACKENDS

PROMPTS = [
    "a large red circle on white",
    "a blue square",
    "a small yellow cross on black",
    "a large purple triangle on grey",
    "a green cross on white, with many more words than any caption it has seen before",
    "x",
    "a small orange square on grey",
    "a large green circle",
]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("sampler", ["gumbel", "multinomial"])
def test_alpha_0_with_the_final_layer_is_the_baseline_step_by_step(short, temperature, sampler):
    final = DoLaConfig(alpha=0.0, premature_layer="final")
    settings = {"temperature": temperature, "sampler": sampler, "seed": 3}
    expected = short.generate(PROMPTS[:2], 2, dola=None, **settings)
    out = short.generate(PROMPTS[:2], 2, dola=final, **settings)
    assert torch.equal(out.tokens, expected.tokens)
    assert (out.premature_layers == 8).all()
    assert (out.jsd == 0).all()


@pytest.mark.parametrize(
    "dola", [None, DoLaConfig(), DoLaConfig(premature_layer=2)], ids=["baseline", "dola", "static"]
)
def test_image_does_not_depend_on_its_batch(short, dola):
    together = short.generate(PROMPTS, 1, dola=dola, seed=40)
    for i, prompt in enumerate(PROMPTS):
        alone = short.generate(prompt, 1, dola=dola, seed=40 + i)
        assert torch.equal(alone.tokens[0, 0], together.tokens[i, 0]), prompt
        assert torch.equal(alone.premature_layers[0, 0], together.premature_layers[i, 0])


def test_seeds_are_numbered_through_the_prompts_and_recorded(short):
    together = short.generate(PROMPTS[:2], 3, dola=None, cfg_weight=1.0, seed=100)
    assert together.seeds.tolist() == [[100, 101, 102], [103, 104, 105]]
    alone = short.generate(PROMPTS[1], dola=None, cfg_weight=1.0, seed=104)
    assert torch.equal(alone.tokens[0, 0], together.tokens[1, 1])
    assert len(together.tokens[0].unique(dim=0)) == 3


def test_without_a_seed_every_call_differs_and_the_seed_drawn_is_recorded(short):
    first, second = (short.generate(PROMPTS[0], seed=None) for _ in range(2))
    assert first.seeds != second.seeds
    again = short.generate(PROMPTS[0], seed=int(first.seeds[0, 0]))
    assert torch.equal(again.tokens, first.tokens)


def test_what_comes_back(mini):
    out = mini.generate(PROMPTS[:2], parallel_size=3)
    assert [[image.size for image in row] for row in out.images] == [[(64, 64)] * 3] * 2
    assert out.images[0][0].mode == "RGB"
    for tensor in (out.tokens, out.premature_layers, out.jsd):
        assert tensor.shape == (2, 3, 64)
    assert out.tokens.dtype == out.premature_layers.dtype == out.seeds.dtype == torch.int64
    assert 0 <= out.tokens.min() <= out.tokens.max() < 512
    assert set(out.premature_layers.unique().tolist()) <= {2, 4, 6}
    assert ((out.jsd > 0) & (out.jsd <= math.log(2))).all()


def test_static_dola_contrasts_with_its_layer_everywhere(mini):
    out = mini.generate(PROMPTS[0], dola=DoLaConfig(premature_layer=5))
    assert (out.premature_layers == 5).all()
    assert (out.jsd > 0).all()


def test_dola_changes_the_image(short):
    baseline = short.generate(PROMPTS[:2], dola=None)
    assert not torch.equal(short.generate(PROMPTS[:2]).tokens, baseline.tokens)


@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
def test_backends_draw_the_same_images(deepseek, dola, monkeypatch):
    """Backends of the image head; test_triton_blocks.py has the blocks, which take minutes when interpreted."""
    monkeypatch.setattr(blocks, "block_triton", SimpleNamespace(why_not=lambda blocks: "time"))
    drawn = [deepseek.generate(PROMPTS[0], dola=dola, backend=backend, window=4).tokens for backend in CPU_BACKENDS]
    assert all(torch.equal(tokens, drawn[0]) for tokens in drawn[1:])


def test_a_model_already_in_memory_is_wrapped_and_left_where_it_is(short):
    pipe = JanusDoLa(short.model, short.tokenizer)
    assert pipe.model is short.model
    assert pipe.tokenizer is short.tokenizer
    assert torch.equal(pipe.generate("x").tokens, short.generate(["x"]).tokens)


@pytest.mark.parametrize("sampler", ["gumbel", "multinomial"])
def test_non_finite_hidden_states_are_reported_with_their_image(mini, monkeypatch, sampler):
    step, calls = Decoder.step, []

    def poisoned(decoder, visible):
        calls.append(1)
        if len(calls) == 10:
            decoder.keys_values[3, 1] = float("nan")
        step(decoder, visible)

    monkeypatch.setattr(Decoder, "step", poisoned)
    with pytest.raises(
        NonFiniteError, match=r"became NaN or infinite for image\(s\) \[1\], counted over all prompts"
    ) as error:
        mini.generate(PROMPTS[:3], sampler=sampler, window="auto" if sampler == "multinomial" else 1)
    assert error.value.images == [1]
    assert len(error.value.drawn) == 2
    assert len(calls) == 63  # the image was drawn to its end: nothing was read back before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts must hold at least one string, got none"),
        ({"prompts": ["a", 3]}, "prompts must be strings, got 3"),
        (
            {"prompts": ["a circle " * 300]},
            "prompts must leave room for 64 image tokens: at most 448 tokens each, got one of",
        ),
        ({"prompts": {"a": 1}}, "prompts must be a string or strings, got dict"),
        ({"prompts": b"a"}, "prompts must be a string or strings, got bytes"),
        ({"prompts": None}, "prompts must be a string or strings, got NoneType"),
        ({"parallel_size": 0}, "parallel_size must be an int in 1 .. 65536, got 0"),
        ({"parallel_size": 10**7}, "parallel_size must be an int in 1 .. 65536, got 10000000"),
        ({"parallel_size": 1.5}, "parallel_size must be an int in 1 .. 65536, got 1.5"),
        ({"parallel_size": True}, "parallel_size must be an int in 1 .. 65536, got True"),
        ({"temperature": -0.5}, r"temperature must be a finite number >= 0 \(0 is greedy\), got -0.5"),
        ({"temperature": float("nan")}, "temperature must be a finite number .* got nan"),
        ({"cfg_weight": float("nan")}, "cfg_weight must be a finite number, got nan"),
        ({"cfg_weight": None}, "cfg_weight must be a finite number, got None"),
        ({"temperature": "hot"}, "temperature must be a finite number >= 0 .*, got 'hot'"),
        ({"window": 3}, r'window must be "auto" or one of \[1, 2, 4, 8, 16, 32\], got 3'),
        ({"window": 8, "sampler": "multinomial"}, "window must be 1 with the sampler 'multinomial', got 8"),
        ({"seed": -1}, "seed must be None or an int in 0 .. .*, got -1"),
        ({"seed": 2**63}, "seed must be None or an int in 0 .. .*, got 9223372036854775808"),
        ({"sampler": "greedy"}, r"sampler must be one of \['gumbel', 'multinomial'\], got 'greedy'"),
        ({"backend": "cuda"}, r"backend must be one of \['auto', 'reference', 'torch', 'triton'\], got 'cuda'"),
        ({"dola": DoLaConfig([8, 9])}, r"candidate_layers must name a layer in 1 .. 7 .* got \[8, 9\]"),
        ({"dola": DoLaConfig(premature_layer=8)}, "premature_layer must lie in 1 .. 7, .* got 8"),
    ],
)
def test_bad_input(mini, arguments, message):
    with pytest.raises(ValueError, match=message):
        mini.generate(**{"prompts": "a red circle", **arguments})


def test_numbers_of_numpy_are_numbers(short):
    expected = short.generate("a red circle", 2, seed=3, cfg_weight=2.0).tokens
    codes = short.generate("a red circle", np.int32(2), seed=np.int64(3), cfg_weight=np.float32(2)).tokens
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_max_images_out_of_range(mini, size):
    with pytest.raises(ValueError, match=f"max_images must be None or an int in 1 .. 65536, got {size}"):
        mini.stream("a red circle", max_images=size)


def test_a_stream_of_one_string_is_one_prompt(short):
    assert [image.prompt for image in short.stream("red")] == [0]


@settings(max_examples=10)
@given(prompt=st.text(max_size=60), seed=st.integers(0, 2**62))
def test_any_text_is_a_prompt(mini, prompt, seed):
    assert mini.generate(prompt, seed=seed, cfg_weight=1.0).tokens.shape == (1, 1, 64)


def test_mini_draws_what_its_captions_say(mini):
    """A quick look; the full table is made by `make score-mini`."""
    from bench.mini.judge import check

    captions = [
        f"a {size} {colour} {shape} on {background}"
        for size, colour, shape, background in zip(
            list(SIZES) * 8, list(COLOURS) * 3, list(SHAPES) * 4, list(BACKGROUNDS) * 6, strict=False
        )
    ]
    drawn = mini.generate(captions, dola=None, seed=1)
    right = [check(row[0], text).all_right for row, text in zip(drawn.images, captions, strict=True)]
    assert sum(right) >= 0.75 * len(right)


@pytest.fixture
def memory_for(mini, short, monkeypatch):
    """Memory for so many images at once; returns how many each attempt began with."""

    def limit(images):
        begun, make = [], Decoder.__init__

        def counted(self, image_model, weights, key, *rest):
            begun.append(key.slots)
            if key.slots > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
            make(self, image_model, weights, key, *rest)

        monkeypatch.setattr(Decoder, "__init__", counted)
        for pipe in (mini, short):  # neither keeps the limit that is learnt here
            monkeypatch.setattr(pipe, "engine", Engine(pipe.image_model))
        return begun

    return limit


def test_where_memory_runs_out_half_as_many_images_are_drawn_at_once(short, memory_for):
    expected = short.generate(PROMPTS[:2], 2, seed=3)
    begun = memory_for(1)
    out = short.generate(PROMPTS[:2], 2, seed=3)
    assert begun == [4, 2, 1, 1, 1, 1] or begun == [4, 2, 1]  # a slot may serve image after image
    assert torch.equal(out.tokens, expected.tokens)
    assert out.seeds.tolist() == expected.seeds.tolist()
    begun.clear()
    short.generate(PROMPTS[:2], 2, max_images=3)
    assert set(begun) == {1}  # for good, until memory is given back
    short.engine.release()
    begun.clear()
    short.generate(PROMPTS[:2], 2, max_images=3)
    assert begun[:3] == [3, 2, 1]


def test_a_stream_halves_too_and_loses_no_image_and_no_error(mini, memory_for):
    prompts = [*PROMPTS[:2], "a red circle", "a blue cross", "x " * 9999]
    expected = mini.generate(prompts[:4], 2, seed=3)
    begun, counts, actual = memory_for(2), [], []
    with pytest.raises(ValueError, match="prompts must leave room"):
        actual.extend(mini.stream(prompts, 2, seed=3, callback=lambda *codes: counts.append(codes)))
    assert begun[:3] == [8, 4, 2]
    assert [(image.prompt, image.k) for image in actual] == [(i, k) for i in range(4) for k in range(2)]
    assert torch.equal(torch.stack([image.tokens for image in actual]), expected.tokens.flatten(0, 1))
    assert counts[-1] == (8 * 64, 8 * 64)


def test_a_stream_whose_memory_is_taken_half_way_goes_on_with_what_is_missing(mini, monkeypatch):
    expected = mini.generate(PROMPTS[0], 6, seed=3)
    calls, step = [], Decoder.run

    def run(self, visible):
        calls.append(len(self.slots.seeds))
        if len(calls) == 70:  # the first images are out
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, visible)

    monkeypatch.setattr(Decoder, "run", run)
    monkeypatch.setattr(mini, "engine", Engine(mini.image_model))
    counts = []
    images = list(
        mini.stream(PROMPTS[0], 6, seed=3, max_images=3, window=1, callback=lambda *codes: counts.append(codes))
    )
    assert (calls[69], calls[70]) == (3, 2)
    assert torch.equal(torch.stack([image.tokens for image in images]), expected.tokens[0])
    assert counts[-1] == (6 * 64, 6 * 64)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("gumbel", r"out of memory with 1 image\(s\) at once: free memory"),
        ("multinomial", r"out of memory with 3 image\(s\) at once: draw fewer at once \(a smaller parallel_size\)"),
    ],
)
def test_memory_that_cannot_be_had_is_said_in_one_line(mini, memory_for, sampler, message):
    memory_for(0)
    with pytest.raises(torch.OutOfMemoryError, match=message) as raised:
        mini.generate(PROMPTS[0], 3, sampler=sampler)
    assert "\n" not in str(raised.value)
    if sampler == "gumbel":
        with pytest.raises(torch.OutOfMemoryError, match=message):
            list(mini.stream(PROMPTS[0], 3))


def test_a_list_of_seeds_is_one_for_each_image(short):
    prompts = ["a green cross", "a small red circle on grey"]
    out = short.generate(prompts, parallel_size=2, seed=[7, 2**63 - 1, 7, 0])
    assert out.seeds.tolist() == [[7, 2**63 - 1], [7, 0]]
    alone = short.generate(prompts[1], seed=7)
    assert torch.equal(out.tokens[1, 0], alone.tokens[0, 0])
    with pytest.raises(ValueError, match="one for each of 4 images, got 2"):
        short.generate(prompts, parallel_size=2, seed=[1, 2])


@pytest.mark.parametrize(("dola", "temperature"), [(DoLaConfig(), 0.7), (None, 1.0), (DoLaConfig(alpha=0.5), 0)])
def test_log_probabilities_of_the_codes_drawn(short, dola, temperature):
    """Against the reference in float64 on transformers' own hidden states. Other codes have less, or none."""
    prompt = "a small red circle on grey"
    out = short.generate(prompt, 2, dola=dola, temperature=temperature, seed=5)
    actual = short.log_probs(prompt, out.tokens, dola=dola, temperature=temperature)
    assert actual.shape == out.tokens.shape
    expected = _by_transformers(copy.deepcopy(short.model).double(), short, prompt, out.tokens[0, 1], dola, temperature)
    assert torch.allclose(actual[0, 1].double(), expected, atol=2e-3)
    if temperature == 0:
        assert (actual == 0).all()
    other = (out.tokens + 1) % 512
    assert (short.log_probs(prompt, other, dola=dola, temperature=temperature) < actual).float().mean() > 0.9


@pytest.mark.parametrize("negative", ["a blue square on black", "blue", "a blue square on black, " * 4])
def test_a_negative_prompt_stands_in_the_unconditional_row(short, negative):
    prompt = "a small red circle on grey"
    out = short.generate(prompt, 2, temperature=0.7, seed=5, negative_prompt=negative)
    assert not torch.equal(out.tokens, short.generate(prompt, 2, temperature=0.7, seed=5).tokens)
    actual = short.log_probs(prompt, out.tokens, temperature=0.7, negative_prompt=negative)
    model = copy.deepcopy(short.model).double()
    expected = _by_transformers(model, short, prompt, out.tokens[0, 1], DoLaConfig(), 0.7, negative)
    assert torch.allclose(actual[0, 1].double(), expected, atol=2e-3)
    (streamed,) = short.stream(prompt, temperature=0.7, seed=5, negative_prompt=negative)
    assert torch.equal(streamed.tokens, out.tokens[0, 0])


def test_away_from_the_prompt_itself_is_no_guidance(short):
    prompt = "a small red circle on grey"
    out = short.generate(prompt, 2, dola=None, seed=5, negative_prompt=prompt)
    assert torch.equal(out.tokens, short.generate(prompt, 2, dola=None, seed=5, cfg_weight=1).tokens)
    none = short.generate(prompt, seed=5, negative_prompt=" ")
    assert torch.equal(none.tokens, short.generate(prompt, seed=5).tokens)


@pytest.mark.parametrize(
    ("negative", "message"),
    [(["blue"], "negative_prompt must be None or a string"), ("blue " * 9999, "negative_prompt must leave room for")],
)
def test_a_negative_prompt_is_checked_before_anything_is_drawn(mini, negative, message):
    with pytest.raises(ValueError, match=message):
        mini.stream("a red circle", negative_prompt=negative)


def _by_transformers(model, pipe, prompt, codes, dola, temperature, negative=None):
    ids, pad = pipe.encode(prompt)[0].conditional, pipe.prompts.special.pad
    if negative is None:
        other = [ids[0], *[pad] * (len(ids) - 2), ids[-1]]
    else:
        other = pipe.encode(negative)[0].conditional
        more = len(ids) - len(other)
        ids, other = ([row[0]] + [pad] * max(count, 0) + row[1:] for row, count in ((ids, -more), (other, more)))
    rows = torch.tensor([ids, other])
    inner = model.model
    words = inner.language_model.get_input_embeddings()(rows)
    fed = model.prepare_embeddings_for_image_generation(codes[:-1].repeat(2))
    states = inner.language_model(
        inputs_embeds=torch.cat([words, fed.view(2, -1, 192)], 1), output_hidden_states=True
    ).hidden_states
    layers = [] if dola is None else dola.layers_to_read(8)
    norm = inner.language_model.norm
    raw = []
    hook = norm.register_forward_pre_hook(lambda _, given: raw.append(given[0]))
    inner.language_model(inputs_embeds=torch.cat([words, fed.view(2, -1, 192)], 1))
    hook.remove()
    stack = torch.stack([*(states[layer] for layer in layers), raw[0]])[:, :, len(ids) - 1 :].flatten(1, 2)
    params = DrawSettings(5.0, temperature, dola).sampling_params(tuple(layers))
    scores = head_scores(stack, JanusDoLa(model, pipe.tokenizer).image_model.head, params, "reference").scores
    return log_probabilities(scores, temperature, codes)


def test_top_k_and_top_p_leave_the_most_probable_codes(short):
    """One code is the greedy one; the windows agree; log-probabilities are those of what is left."""
    prompt, settings = "a red circle", DrawSettings(5.0, 1.5, None, top_k=3, top_p=0.9)
    greedy = short.generate(prompt, 2, settings, temperature=0.0, seed=5).tokens
    assert torch.equal(short.generate(prompt, 2, dola=None, top_k=1, seed=5).tokens, greedy)
    drawn = short.generate(prompt, 2, settings, seed=5, window=8)
    assert torch.equal(drawn.tokens, short.generate(prompt, 2, settings, seed=5, window=1).tokens)
    assert not torch.equal(drawn.tokens, short.generate(prompt, 2, settings, top_k=0, top_p=1, seed=5).tokens)
    actual = short.log_probs(prompt, drawn.tokens, settings)
    assert (actual > -torch.inf).float().mean() > 0.98  # at the edge of top-p rounding decides
    whole = short.generate(prompt, 2, settings, top_k=0, top_p=1, seed=6).tokens
    assert (short.log_probs(prompt, whole, settings) == -torch.inf).any()
    multinomial = short.generate(prompt, 2, settings, sampler="multinomial", seed=7)
    assert (short.log_probs(prompt, multinomial.tokens, settings) > -torch.inf).float().mean() > 0.98


def test_settings_and_keywords_say_the_same(short):
    prompt, settings = "a red circle", DrawSettings(3.0, 0.7, None, top_k=40)
    drawn = short.generate(prompt, 1, settings, seed=3).tokens
    assert torch.equal(
        drawn, short.generate(prompt, cfg_weight=3.0, temperature=0.7, dola=None, top_k=40, seed=3).tokens
    )
    assert torch.equal(
        drawn[0, 0], short.generate(prompt, 1, replace(settings, top_k=7), seed=3, top_k=40).tokens[0, 0]
    )
    with pytest.raises(
        ValueError, match="settings must be DrawSettings, got DoLaConfig.*; a DoLaConfig is given as contrast="
    ):
        short.generate(prompt, 1, DoLaConfig())
    with pytest.raises(ValueError, match="dola must be a contrast such as DoLaConfig.., or None for plain"):
        short.generate(prompt, dola=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tempereture'"):
        short.generate(prompt, tempereture=1)
