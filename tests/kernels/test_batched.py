import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from janus_dola.kernels import batched, reference
from janus_dola.kernels.early_exit import BACKENDS, early_exit_scores
from janus_dola.kernels.types import Decoding
from tests.kernels.cases import JSD_TOLERANCE, TOTAL_VARIATION, random_head, random_hidden, shapes, to, total_variation

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def agreeing_images(found, oracle, jsd_of_all):
    """Asserts the accuracy contract for layer and JSD; returns the images whose layer is that of the oracle."""
    assert found.finite.all()
    best = jsd_of_all.sort(0, descending=True).values
    clear = best[0] - best[1] > 1e-3 if len(best) > 1 else torch.ones_like(best[0], dtype=torch.bool)
    assert torch.equal(found.layer[clear], oracle.layer[clear])
    same = found.layer == oracle.layer
    assert ((found.jsd - oracle.jsd).abs() <= JSD_TOLERANCE)[same].all()
    return same


def oracle_of(hidden, head, decoding):
    """The reference in float64, and the JSD of every candidate."""
    wide_hidden, wide_head = hidden.double(), to(head, torch.float64)
    scores = reference.early_exit_scores(wide_hidden, wide_head, decoding)
    z = [
        reference.guide(
            reference.apply_head(reference.rms_norm(h, wide_head.norm_weight, head.norm_eps), wide_head),
            decoding.cfg_weight,
        )
        for h in wide_hidden
    ]
    log_q = torch.log_softmax(torch.stack(z), -1)
    return scores, reference.jensen_shannon(log_q[-1], log_q[:-1]), log_q[-1]


def clear_of_the_plausibility_edge(log_q_final, alpha, margin=1e-3):
    """Images in which no code lies so near to the threshold that rounding may decide whether it is plausible."""
    if alpha == 0:
        return torch.ones(len(log_q_final), dtype=torch.bool)
    threshold = log_q_final.amax(-1, keepdim=True) + torch.tensor(alpha, dtype=torch.float64).log()
    return ((log_q_final - threshold).abs() > margin).all(-1)


@settings(max_examples=150)
@given(
    shape=shapes,
    dtype=st.sampled_from(DTYPES),
    backend=st.sampled_from(sorted(BACKENDS)),
    weight=st.sampled_from([0.0, 1.0, 3.0, 5.0]),
    alpha=st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_every_backend_agrees_with_the_float64_oracle(shape, dtype, backend, weight, alpha, seed):
    head = random_head(shape["hidden"], shape["width"], shape["codes"], dtype, seed)
    hidden = random_hidden(shape["layers"], shape["images"], shape["hidden"], dtype, seed)
    decoding = Decoding(weight, 1.0, alpha)
    found = early_exit_scores(hidden, head, decoding, backend)
    oracle, jsd, log_q = oracle_of(hidden, head, decoding)
    same = agreeing_images(found, oracle, jsd) & clear_of_the_plausibility_edge(log_q, alpha)
    assert (total_variation(found.scores, oracle.scores)[same] <= TOTAL_VARIATION[dtype]).all()


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("premature", [None, 0, 2, 3])
def test_every_backend_agrees_on_hidden_states_of_the_mini_model(mini, mini_hidden_states, backend, premature):
    decoding = Decoding(5.0, 1.0, 0.1, premature)
    found = early_exit_scores(mini_hidden_states, mini.parts.head, decoding, backend)
    oracle, jsd, log_q = oracle_of(mini_hidden_states, mini.parts.head, decoding)
    if premature is not None:
        assert found.layer.tolist() == [premature] * 4
        jsd = oracle.jsd[None]
    same = agreeing_images(found, oracle, jsd) & clear_of_the_plausibility_edge(log_q, 0.1)
    assert same.any()
    assert (total_variation(found.scores, oracle.scores)[same] <= TOTAL_VARIATION[torch.float32]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 65, 7), (2, 100, 30000)])
def test_linear_keeps_the_precision_of_its_input(dtype, shape):
    rows, size_in, size_out = shape
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, size_in, generator=g)
    weight, bias = torch.randn(size_out, size_in, generator=g).to(dtype), torch.randn(size_out, generator=g).to(dtype)
    x = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    found = batched.linear(x, weight, bias)
    assert found.dtype == x.dtype
    expected = x.double() @ weight.double().T + bias.double()
    assert torch.allclose(found.double(), expected, atol=1e-5 * size_in**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_on_a_gpu_keeps_float32_results(dtype):
    """Shapes and dtypes only: a fake tensor runs the same code without the device."""
    with FakeTensorMode():
        x = torch.empty(2, 3, 64, device="cuda")
        found = batched.linear(
            x, torch.empty(100, 64, device="cuda", dtype=dtype), torch.empty(100, device="cuda", dtype=dtype)
        )
    assert (found.shape, found.dtype, found.device.type) == ((2, 3, 100), torch.float32, "cuda")


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_extreme_logits_stay_finite(backend):
    head = random_head(16, 16, 50, torch.float32, seed=1, sharpness=1e4)
    found = early_exit_scores(random_hidden(3, 4, 16, torch.float32, seed=1), head, Decoding(), backend)
    assert found.finite.all()
    assert found.jsd.isfinite().all()
    assert found.scores.softmax(-1).isfinite().all()


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("row", [1, 4])  # the conditional and the unconditional row of image 1
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_images_with_non_finite_hidden_states_are_flagged_and_others_are_not(backend, row, poison):
    head = random_head(16, 16, 50, torch.float32, seed=1)
    hidden = random_hidden(3, 3, 16, torch.float32, seed=1)
    clean = early_exit_scores(hidden, head, Decoding(), backend)
    hidden[0, row, 5] = poison
    found = early_exit_scores(hidden, head, Decoding(), backend)
    assert found.finite.tolist() == [True, False, True]
    assert torch.equal(found.layer[[0, 2]], clean.layer[[0, 2]])
    assert torch.allclose(found.scores[[0, 2]].softmax(-1), clean.scores[[0, 2]].softmax(-1), atol=1e-6)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_images_with_overflowing_logits_are_flagged(backend):
    head = random_head(16, 16, 50, torch.float32, seed=1)
    head.code_bias[3] = float("inf")
    found = early_exit_scores(random_hidden(2, 2, 16, torch.float32, seed=1), head, Decoding(), backend)
    assert not found.finite.any()
