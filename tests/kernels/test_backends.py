"""What every backend of the head stage promises, Triton's kernels under its interpreter among them."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from janus_dola.kernels.head import head_scores
from tests.kernels.cases import (
    CPU_BACKENDS,
    JSD_TOLERANCE,
    JSD_TOLERANCE_OF_SMALL_HEADS,
    assert_accurate,
    dola,
    random_head,
    random_hidden,
    random_matrix,
    shapes,
)

DTYPES = {
    "reference": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    "torch": [torch.float64, torch.float32, torch.bfloat16, torch.float16],
    "triton": [torch.float32, torch.bfloat16, torch.float16],
}


@pytest.fixture
def poisoned_memory():
    """Memory that nobody has written holds NaN and the largest integers."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_agrees(backend, data, shape, weight, seed):
    dtype = data.draw(st.sampled_from(DTYPES[backend]))
    alpha = data.draw(st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
    last = shape["layers"] - 1
    premature = data.draw(st.sampled_from([None, 0, last - 1, last] if last > 0 else [0]))
    if data.draw(st.booleans()):
        head = random_head(shape["hidden"], shape["width"], shape["codes"], dtype, seed)
    else:
        head = random_matrix(shape["hidden"], shape["codes"], dtype, seed, bias=data.draw(st.booleans()))
    hidden = random_hidden(shape["layers"], shape["images"], shape["hidden"], dtype, seed)
    if weight is None:
        hidden = hidden[:, 1:]  # an odd number of rows
    beta = data.draw(st.sampled_from([None, 0.0, 0.25, 2.0]))
    params = dola(weight, 1.0, alpha, premature, beta=beta)
    rounds = backend == "triton" and dtype != torch.float32
    tolerance = JSD_TOLERANCE_OF_SMALL_HEADS if rounds else JSD_TOLERANCE
    assert_accurate(head_scores(hidden, head, params, backend), hidden, head, params, tolerance)


WEIGHT, SEED = st.sampled_from([None, 0.0, 1.0, 3.0, 5.0]), st.integers(0, 10**6)


@pytest.mark.parametrize("backend", [backend for backend in CPU_BACKENDS if backend != "triton"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shape=shapes, weight=WEIGHT, seed=SEED)
def test_every_backend_agrees_with_the_float64_reference(poisoned_memory, backend, data, shape, weight, seed):
    assert_agrees(backend, data, shape, weight, seed)


@pytest.mark.skipif("triton" not in CPU_BACKENDS, reason="needs Triton and its interpreter")
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shape=shapes, weight=WEIGHT, seed=SEED)
def test_the_kernels_agree_with_the_float64_reference(poisoned_memory, data, shape, weight, seed):
    assert_agrees("triton", data, shape, weight, seed)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(("premature", "beta"), [(None, None), (0, 1.0), (2, None), (3, 1.0)])
def test_every_backend_agrees_on_hidden_states_of_the_mini_model(mini, mini_hidden_states, backend, premature, beta):
    params = dola(5.0, 1.0, 0.1, premature, beta=beta)
    scores = head_scores(mini_hidden_states, mini.image_model.head, params, backend)
    assert assert_accurate(scores, mini_hidden_states, mini.image_model.head, params) > 0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_extreme_logits_stay_finite(backend):
    head = random_head(16, 16, 50, torch.float32, seed=1, sharpness=1e4)
    actual = head_scores(random_hidden(3, 4, 16, torch.float32, seed=1), head, dola(), backend)
    assert actual.finite.all()
    assert actual.jsd.isfinite().all()
    assert actual.scores.softmax(-1).isfinite().all()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("row", [1, 4])  # the conditional and the unconditional row of image 1
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38])
def test_images_with_non_finite_hidden_states_are_flagged_and_others_are_not(backend, row, poison):
    """Or with finite ones whose squares are not: their norm would be 0, and every code as likely as another."""
    head = random_head(16, 16, 50, torch.float32, seed=1)
    hidden = random_hidden(3, 3, 16, torch.float32, seed=1)
    clean = head_scores(hidden, head, dola(), backend)
    hidden[0, row, 5] = poison
    actual = head_scores(hidden, head, dola(), backend)
    assert actual.finite.tolist() == [True, False, True]
    assert torch.equal(actual.layer[[0, 2]], clean.layer[[0, 2]])
    assert torch.allclose(actual.scores[[0, 2]].softmax(-1), clean.scores[[0, 2]].softmax(-1), atol=1e-6)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_images_with_overflowing_logits_are_flagged(backend):
    head = random_head(16, 16, 50, torch.float32, seed=1)
    head.code_bias[3] = float("inf")
    scores = head_scores(random_hidden(2, 2, 16, torch.float32, seed=1), head, dola(), backend)
    assert not scores.finite.any()
