from dataclasses import fields, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from janus_dola.engine.scoring import log_distributions
from janus_dola.kernels import reference
from janus_dola.kernels.head import head_scores, sample_codes
from janus_dola.kernels.philox import gumbel_noise
from janus_dola.kernels.sampling import gumbel_max, multinomial
from janus_dola.kernels.types import SampledCodes, SamplingTensors, Scores
from tests.kernels.cases import CPU_BACKENDS, dola, random_head, random_hidden, to

BACKEND = pytest.mark.parametrize("backend", CPU_BACKENDS)


@pytest.fixture
def case():
    """Three layers, four images."""
    return random_hidden(3, 4, 16, torch.float32, seed=3), random_head(16, 16, 50, torch.float32, seed=3)


def seeds(images):
    return torch.arange(images) + 11


@BACKEND
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(temperature=st.one_of(st.just(0.0), st.floats(0.05, 5)), weight=st.floats(-3, 12), position=st.integers(0, 575))
def test_alpha_0_and_the_final_layer_are_the_baseline(case, backend, temperature, weight, position):
    hidden, head = case
    forced = sample_codes(hidden, head, dola(weight, temperature, 0.0, 2), seeds(4), position, backend)
    # The baseline, in other words: the head's own logits, guided, drawn from with the same noise.
    rows = reference.apply_head(reference.rms_norm(hidden[-1], head.norm_weight, head.norm_eps), head)
    logits = reference.guide(rows, weight)
    noise = gumbel_noise(seeds(4), position, 50)
    scores = logits if temperature == 0 else logits / temperature + noise
    best = scores.topk(2).values
    clear = best[:, 0] - best[:, 1] > 1e-3
    assert torch.equal(forced.code[clear], scores.argmax(-1)[clear])
    assert forced.jsd.tolist() == [0, 0, 0, 0]


def test_of_equal_layers_the_lowest_is_chosen(case):
    hidden, head = case
    twice = torch.stack([hidden[0], hidden[0], hidden[1], hidden[1], hidden[2]])
    once = head_scores(hidden, head, dola(), "reference")
    assert torch.equal(head_scores(twice, head, dola(), "reference").layer, 2 * once.layer)


# Guidance, temperature, plausibility and layer all differ: by JSD, forced ones, none, and the baseline.
OF_EACH = [
    dola(), dola(3.0, 0.0, 0.0), dola(1.0, 0.5, 0.5, 0),
    dola(7.5, 2.0, 0.1, 1), dola(5.0, 1.0, 0.3, 2),
    dola(5.0, 1.0, 0.0, 2), dola(-2.0, 0.0, 1.0, 2),
]  # fmt: skip


@BACKEND
@pytest.mark.parametrize("with_projection", [True, False])
def test_bits_of_an_image_do_not_depend_on_its_neighbours_settings(backend, with_projection):
    images = len(OF_EACH)
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, images, 16, torch.float32, seed=3)
    if not with_projection:
        head = replace(head, proj_weight=None, proj_bias=None)
    together = SamplingTensors.of(OF_EACH, hidden)
    drawn = sample_codes(hidden, head, together, seeds(images), 3, backend)
    scored = head_scores(hidden, head, together, backend)
    for image, params in enumerate(OF_EACH):
        alike_drawn = sample_codes(hidden, head, params, seeds(images), 3, backend)
        alike_scored = head_scores(hidden, head, params, backend)
        for actual, alike, kind in ((drawn, alike_drawn, SampledCodes), (scored, alike_scored, Scores)):
            for field in fields(kind):
                assert torch.equal(getattr(actual, field.name)[image], getattr(alike, field.name)[image])
    assert drawn.layer.tolist()[2:] == [0, 1, 2, 2, 2]
    assert ((drawn.jsd == 0) == torch.tensor([False] * 4 + [True] * 3)).all()


def test_settings_of_another_number_of_images(case):
    hidden, head = case
    with pytest.raises(ValueError, match="sampling must hold 4 images, got 3"):
        sample_codes(hidden, head, SamplingTensors.repeat(dola(), 3, hidden), seeds(4), 0)


@BACKEND
def test_the_code_is_the_gumbel_maximum(case, backend):
    hidden, head = case
    params = dola(3.0, 0.7, 0.1)
    actual = head_scores(hidden, head, params, backend)
    for position in (9, torch.tensor([9, 0, 575, 9])):
        code = sample_codes(hidden, head, params, seeds(4), position, backend).code
        assert torch.equal(code, (actual.scores / 0.7 + gumbel_noise(seeds(4), position, 50)).argmax(-1))


@BACKEND
def test_backends_draw_the_same_codes(case, backend):
    hidden, head = case
    expected = head_scores(hidden.double(), to(head, torch.float64), dola(), "reference").scores
    for position in torch.arange(20).split(4):
        code = gumbel_max(expected, 1.0, seeds(4), position)
        assert torch.equal(sample_codes(hidden, head, dola(), seeds(4), position, backend).code, code)


def test_an_image_does_not_depend_on_its_batch(case):
    hidden, head = case
    together = sample_codes(hidden, head, dola(), seeds(4), 2)
    for image in range(4):
        alone = sample_codes(hidden[:, [image, 4 + image]], head, dola(), seeds(4)[[image]], 2)
        assert alone.code == together.code[image]
        assert alone.layer == together.layer[image]


def test_greedy_takes_the_best_code_and_ignores_the_seed(case):
    hidden, head = case
    params = dola(temperature=0.0)
    expected = head_scores(hidden, head, params).scores.argmax(-1)
    assert torch.equal(sample_codes(hidden, head, params, seeds(4), 0).code, expected)
    assert torch.equal(sample_codes(hidden, head, params, seeds(4) + 99, 5).code, expected)


@BACKEND
def test_the_smallest_temperature_is_nearly_greedy(case, backend):
    hidden, head = case
    best = head_scores(hidden, head, dola(), backend).scores.argmax(-1)
    assert torch.equal(sample_codes(hidden, head, dola(temperature=1e-6), seeds(4), 0, backend).code, best)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gumbel_max_draws_from_the_tempered_distribution(temperature):
    scores = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]])
    drawn = gumbel_max(scores.expand(20000, 4), temperature, torch.arange(20000), 3)
    observed = drawn.bincount(minlength=4)
    assert observed[3] == 0
    expected = 20000 * (scores[0, :3] / temperature).softmax(-1)
    assert stats.chisquare(observed[:3].numpy(), expected.numpy(), sum_check=False).pvalue > 1e-3


def test_equal_codes_are_as_likely_at_the_smallest_temperature():
    """F / T has steps of 1 where F is 10: G is added to (F - max F) / T, whose steps are small where it matters."""
    scores = torch.tensor([[-3.0, 10.0, 9.0, 10.0]])
    drawn = gumbel_max(scores.expand(40_000, 4), 1e-6, torch.arange(40_000), 3)
    assert drawn.unique().tolist() == [1, 3]
    assert stats.binomtest(int((drawn == 1).sum()), 40_000).pvalue > 1e-3
    scores[0, 3] = 10 - 2.0**-20  # one step of float32 below
    expected = (scores[0, [1, 3]].double() * 1e6).log_softmax(-1)
    assert torch.allclose(log_distributions(scores, 1e-6)[0, [1, 3]].double(), expected, atol=1e-6)


@pytest.mark.skipif("triton" not in CPU_BACKENDS, reason="needs Triton and its interpreter")
@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1.0])
def test_the_sweep_draws_between_ties_as_torch_does(temperature):
    """Wherever they stand among its programs: it knows the largest F only in the end."""
    from janus_dola.kernels.gpu.launch import SweepLaunch
    from janus_dola.kernels.gpu.sweep import as_single_layer_logits, sweep

    scores = torch.full((12, 40), -3.0)
    scores[:, [1, 6, 17, 38]], scores[:, 0] = 10.0, 9.0
    each = SamplingTensors.repeat(dola(alpha=0.0, temperature=temperature, premature=0), 12, scores)
    expected = gumbel_max(scores, temperature, seeds(12), 3)
    for parts in (1, 3):
        positions = torch.full((12,), 3)
        swept = sweep(*as_single_layer_logits(scores), each, seeds(12), positions, launch=SweepLaunch(8, parts, 4))
        assert torch.equal(swept.code, expected)
    assert len(expected.unique()) > 2


def test_multinomial_draws_from_torchs_global_generator():
    scores = torch.randn(6, 40)
    finite = torch.ones(6, dtype=torch.bool)
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        first = multinomial(scores, 0.8, finite)
    again = torch.multinomial((scores / 0.8).softmax(-1), 1, generator=torch.Generator().manual_seed(4)).squeeze(-1)
    assert torch.equal(first, again)


def test_multinomial_survives_an_image_that_is_not_finite():
    scores = torch.tensor([[float("nan")] * 3, [0.0, float("-inf"), float("-inf")]])
    drawn = multinomial(scores, 1.0, torch.tensor([False, True]))
    assert drawn[1] == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**63 - 5), position=st.integers(0, 5000), alpha=st.floats(0, 1))
def test_codes_are_plausible_for_any_seed(seed, position, alpha):
    hidden, head = random_hidden(3, 4, 16, torch.float32, seed=3), random_head(16, 16, 50, torch.float32, seed=3)
    params = dola(alpha=alpha)
    scores = head_scores(hidden, head, params).scores
    code = sample_codes(hidden, head, params, torch.arange(4) + seed, position).code
    assert scores.gather(1, code[:, None]).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h, s: (h[0], s),
            r"hidden_states must be \[layers >= 1, an even number of rows, 16\], got shape \[8, 16\]",
        ),
        (lambda h, s: (h[:, :7], s[:3]), r"hidden_states must be .* got shape \[3, 7, 16\]"),
        (lambda h, s: (h[..., :15], s), r"hidden_states must be .* got shape \[3, 8, 15\]"),
        (lambda h, s: (h.half(), s), "hidden_states must have the head's dtype, torch.float32, got torch.float16"),
        (lambda h, s: (h.to("meta"), s), "hidden_states must be on the head's device, cpu, got meta"),
        (lambda h, s: (h, s[:3]), r"seeds must be int64 of shape \[4\] on cpu, got torch.int64 of shape \[3\]"),
        (lambda h, s: (h, s, s[:1]), r"position must be int64 of shape \[4\] on cpu, got torch.int64 of shape \[1\]"),
        (lambda h, s: (h, s.int()), r"seeds must be int64 of shape \[4\] on cpu, got torch.int32 of shape \[4\]"),
    ],
)
def test_shapes_and_dtypes_that_do_not_match(case, change, message):
    hidden, head = case
    hidden, keys, *position = change(hidden, seeds(4))
    with pytest.raises(ValueError, match=message):
        sample_codes(hidden, head, dola(), keys, *(position or [0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_bias": torch.zeros(49)}, r"code_bias must have shape \[50\], got \[49\]"),
        ({"norm_weight": torch.zeros(17)}, r"norm_weight must have shape \[16\], got \[17\]"),
        ({"code_weight": torch.zeros(50, 17)}, r"proj_weight must have shape \[17, 16\], got \[16, 16\]"),
        (
            {"proj_bias": torch.zeros(16).half()},
            "proj_bias must be torch.float32 on cpu like code_weight, got torch.float16",
        ),
    ],
)
def test_heads_that_do_not_fit_together(case, change, message):
    with pytest.raises(ValueError, match=message):
        replace(case[1], **change)


def test_unknown_backend(case):
    hidden, head = case
    with pytest.raises(
        ValueError, match=r"backend must be one of \['auto', 'reference', 'torch', 'triton'\], got 'cuda'"
    ):
        sample_codes(hidden, head, dola(), seeds(4), 0, "cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, r"temperature must be a finite number >= 0 \(0 is greedy\), got -1.0"),
        ({"temperature": 1e-40}, r"temperature must be 0 \(greedy\) or at least 1e-06, got 1e-40"),
        ({"temperature": 9e-7}, r"temperature must be 0 \(greedy\) or at least 1e-06, got 9e-07"),
        ({"temperature": float("inf")}, "temperature must be a finite number"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": 1e39}, r"temperature must be 0 or lie in 1e-06 .. 1e\+10, got 1e\+39"),
        ({"cfg_weight": float("inf")}, "cfg_weight must be a finite number, got inf"),
        ({"cfg_weight": -1.1e10}, r"cfg_weight must lie in -1e\+10 .. 1e\+10, got -11000000000.0"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        dola(**arguments)
