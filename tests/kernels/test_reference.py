import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon

from janus_dola.kernels import contrast, reference
from janus_dola.kernels.params import log_of
from janus_dola.kernels.types import SamplingTensors
from tests.kernels.cases import dola, random_head, random_hidden, total_variation

logits = hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(1, 60)), elements=st.floats(-30, 30))
extreme = hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 40)), elements=st.floats(-1e4, 1e4, width=32))
weights = st.floats(-3, 12)
alphas = st.floats(0, 1)


def log_probabilities(array):
    return torch.log_softmax(torch.from_numpy(array), -1)


@given(logits)
def test_jensen_shannon_agrees_with_scipy(array):
    p, q = log_probabilities(array)
    expected = jensenshannon(p.exp().numpy(), q.exp().numpy()) ** 2
    # scipy takes a square root of a difference of entropies, which costs it the last digits near 0
    assert contrast.jensen_shannon(p, q).item() == pytest.approx(np.nan_to_num(expected), abs=1e-7)


def test_jensen_shannon_of_many_codes_is_that_of_float64():
    """More codes than a CPU sums at once, and a last piece that is shorter."""
    torch.manual_seed(0)
    log_p, log_q = (8 * torch.randn(2, 3, 10_001)).log_softmax(-1)
    p, q = log_p.double().exp().numpy(), log_q.double().exp().numpy()
    expected = jensenshannon(p, q, axis=-1) ** 2
    assert contrast.jensen_shannon(log_p, log_q).numpy() == pytest.approx(expected, abs=2e-6)


@given(extreme)
def test_jensen_shannon_is_bounded_symmetric_and_zero_for_equals(array):
    p, q = log_probabilities(array)
    there, back = contrast.jensen_shannon(p, q), contrast.jensen_shannon(q, p)
    assert 0 <= there <= math.log(2)
    assert there.item() == pytest.approx(back.item(), abs=1e-6)
    assert contrast.jensen_shannon(p, p) == 0


def test_jensen_shannon_of_disjoint_one_hots_is_ln_2():
    p = torch.tensor([0.0, -math.inf, -math.inf])
    q = torch.tensor([-math.inf, 0.0, -math.inf])
    assert contrast.jensen_shannon(p, q).item() == pytest.approx(math.log(2), abs=1e-7)
    assert contrast.jensen_shannon(p, p) == 0


def test_jensen_shannon_is_not_the_swapped_divergence_of_the_original_code():
    p = torch.tensor([0.9, 0.1]).log()
    q = torch.tensor([0.1, 0.9]).log()
    m = (0.5 * (p.exp() + q.exp())).log()
    swapped = 0.5 * ((m.exp() * (m - p)).sum() + (m.exp() * (m - q)).sum())
    assert contrast.jensen_shannon(p, q).item() == pytest.approx(0.3680642, abs=1e-6)
    assert abs(swapped.item() - 0.3680642) > 0.1


@given(logits, alphas)
def test_plausible_codes_are_those_of_the_definition(array, alpha):
    log_q, _ = log_probabilities(array)
    q = log_q.exp()
    admitted = contrast.plausible(log_q, log_of(alpha))
    clear = (q - alpha * q.max()).abs() > 1e-9 * q.max()
    assert torch.equal(admitted[clear], (q >= alpha * q.max())[clear])
    assert admitted[q.argmax()]
    if alpha == 0:
        assert admitted.all()


@given(logits, alphas)
def test_contrast_is_the_normalised_ratio_on_the_plausible_codes(array, alpha):
    log_n, log_m = log_probabilities(array)
    admitted = contrast.plausible(log_n, log_of(alpha))
    ratio = torch.where(admitted, log_n.exp() / log_m.exp(), 0.0)
    actual = contrast.log_ratio(log_n, log_m, admitted).softmax(-1)
    assert torch.allclose(actual, ratio / ratio.sum(), atol=1e-9)
    assert (actual[~admitted] == 0).all()


@given(extreme, alphas, st.sampled_from([(1.0, 1.0), (1.0, 0.0), (1000.0, 999.0)]))
def test_contrast_never_gives_nan(array, alpha, weights):
    log_n, log_m = log_probabilities(array)
    p_hat = contrast.log_ratio(log_n, log_m, contrast.plausible(log_n, log_of(alpha)), *weights).softmax(-1)
    assert p_hat.isfinite().all()
    assert p_hat.sum().item() == pytest.approx(1, abs=1e-5)


def test_contrast_with_one_hot_distributions():
    one_hot = torch.tensor([0.0, -math.inf, -math.inf])
    other = torch.tensor([-math.inf, 0.0, -math.inf])
    for premature in (other, one_hot):
        admitted = contrast.plausible(one_hot, log_of(0.1))
        assert contrast.log_ratio(one_hot, premature, admitted).softmax(-1).tolist() == [1, 0, 0]


@given(logits, alphas, st.sampled_from([0.0, 0.25, 3.0]))
def test_a_finite_weight_moves_the_logarithms_from_the_final_layer_away_from_the_premature_one(array, alpha, beta):
    log_n, log_m = log_probabilities(array)
    admitted = contrast.plausible(log_n, log_of(alpha))
    logits = torch.stack([log_m, log_n]).unsqueeze(1)
    log_alpha, *weights = (torch.tensor([each]).double() for each in (log_of(alpha), 1 + beta, beta))
    actual = contrast.dola(logits, log_alpha, torch.tensor([0]), *weights).scores[0]
    assert torch.allclose(actual[admitted], (log_n + beta * (log_n - log_m))[admitted], atol=1e-4, rtol=1e-6)
    assert (actual[~admitted] == -math.inf).all()
    without = contrast.dola(logits, log_alpha, torch.tensor([1]), *weights).scores[0]
    assert torch.allclose(without[admitted], log_n[admitted], atol=1e-12)


@given(logits, alphas)
def test_without_a_premature_layer_the_plain_distribution_stays(array, alpha):
    log_n, _ = log_probabilities(array)
    admitted = contrast.plausible(log_n, log_of(alpha))
    scores = contrast.log_ratio(log_n, torch.zeros_like(log_n), admitted)
    assert torch.equal(scores[admitted], log_n[admitted])
    if alpha == 0:
        assert torch.equal(scores, log_n)


@given(logits, weights)
def test_guidance_on_logits_and_on_log_probabilities_is_the_same_distribution(array, weight):
    rows = torch.from_numpy(array)
    on_logits = reference.guide(rows, weight).softmax(-1)
    on_log_probabilities = reference.guide(torch.log_softmax(rows, -1), weight).softmax(-1)
    assert torch.allclose(on_logits, on_log_probabilities, atol=1e-9)


def test_guidance_stacks_conditional_rows_before_unconditional_ones():
    rows = torch.tensor([[2.0], [3.0], [1.0], [1.0]])  # c0 c1 u0 u1
    assert reference.guide(rows, 5.0).tolist() == [[6.0], [11.0]]


def test_rms_norm_is_that_of_llama():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(65, eps=1e-5)
    torch.nn.init.uniform_(norm.weight)
    h = 100 * torch.randn(3, 4, 65)
    assert torch.allclose(reference.rms_norm(h, norm.weight, 1e-5), norm(h), atol=1e-5)


@pytest.mark.parametrize(("dtype", "inside"), [(torch.float64, torch.float64), (torch.float32, torch.float32),
                                               (torch.bfloat16, torch.float32), (torch.float16, torch.float32)])  # fmt: skip
def test_float32_inside_and_float64_for_float64(dtype, inside):
    head = random_head(8, 8, 11, dtype, seed=0)
    hidden = random_hidden(3, 2, 8, dtype, seed=0)
    actual = reference.head_scores(hidden, head, SamplingTensors.repeat(dola(), 2, hidden))
    assert actual.scores.dtype == actual.jsd.dtype == inside


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), weight=weights, alpha=alphas)
def test_the_stage_is_the_formulas_of_the_design_written_out_once_more(seed, weight, alpha):
    head = random_head(12, 10, 31, torch.float64, seed)
    hidden = random_hidden(4, 3, 12, torch.float64, seed)
    actual = reference.head_scores(hidden, head, SamplingTensors.repeat(dola(weight, 1.0, alpha), 3, hidden))
    for image in range(3):
        q = []
        for layer in range(4):
            z = []
            for row in (image, 3 + image):
                h = hidden[layer, row]
                normed = h / math.sqrt(float((h * h).mean()) + 1e-6) * head.norm_weight
                x = head.proj_weight @ normed + head.proj_bias
                gelu = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
                z.append(head.code_weight @ gelu + head.code_bias)
            guided = z[1] + weight * (z[0] - z[1])
            q.append(torch.exp(guided - guided.max()) / torch.exp(guided - guided.max()).sum())
        jsd = [jensenshannon(q[3].numpy(), q[layer].numpy()) ** 2 for layer in range(3)]
        chosen = int(actual.layer[image])
        assert jsd[chosen] == pytest.approx(max(jsd), abs=1e-7)
        assert actual.jsd[image].item() == pytest.approx(jsd[chosen], abs=1e-7)
        p_hat = torch.where(q[3] >= alpha * q[3].max() * (1 - 1e-12), q[3] / q[chosen], 0.0)
        assert total_variation(actual.scores[image], (p_hat / p_hat.sum()).log()) < 1e-7
