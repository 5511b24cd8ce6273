"""Packed float16 weights: as exact as float32 for what float16 holds, and each row by itself."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_dola.kernels.block_torch import Matrix
from janus_dola.kernels.head import head_scores
from janus_dola.kernels.packed import PackedHalf, can_pack, packing_of
from janus_dola.kernels.types import Head
from tests.kernels.cases import dola

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no FBGEMM")


@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(0, 99))
def test_the_product_misses_the_exact_one_by_rounding_of_float32_alone(rows, outputs, inputs, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator).half()
    x, residual = torch.randn(rows, inputs, generator=generator), torch.randn(rows, outputs, generator=generator)
    matrix = Matrix(PackedHalf(weight), torch.randn(outputs, generator=generator) if bias else None)
    exact = x.double() @ weight.double().T + (matrix.bias.double() if bias else 0)
    bound = 1e-6 * (x.double().abs() @ weight.double().abs().T + residual.abs() + 1)
    kept = residual.clone()
    assert ((matrix(x) - exact).abs() <= bound).all()
    assert ((matrix.added_to(residual, x) - (residual + exact)).abs() <= bound).all()
    assert torch.equal(residual, kept)
    assert torch.equal(matrix.weight.unpack(), weight)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 10, 16, 31, 64, 80])
@pytest.mark.parametrize(
    ("outputs", "inputs", "packed"),
    [(512, 192, True), (77, 45, True), (1200, 1000, True), (1200, 1000, False), (576, 192, False)],
)
def test_the_bits_of_a_row_do_not_depend_on_its_neighbours_nor_on_its_place(rows, outputs, inputs, packed):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=generator)
    matrix = Matrix(PackedHalf(weight) if packed else weight)
    x, order = torch.randn(rows, inputs, generator=generator), torch.randperm(rows, generator=generator)
    expected = matrix(x)
    assert torch.equal(matrix(x[order]), expected[order])
    others = torch.randn(rows, inputs, generator=generator)
    others[-1] = x[-1]
    assert torch.equal(matrix(others)[-1], expected[-1])


def test_what_float16_does_not_hold_is_refused():
    with pytest.raises(ValueError, match=r"a weight of shape \[2, 3\] must be finite in float16, .* of 70000;"):
        PackedHalf(torch.full((2, 3), 7e4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_copy_is_the_same(dtype):
    packing = packing_of(dtype)
    if packing is None:
        pytest.skip(f"this machine packs no {dtype}")
    weight = torch.randn(20, 30).to(dtype)
    packed = packing(weight)
    for copied in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(copied.unpack(), weight)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_the_head_with_packed_weights(backend):
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(size, generator=generator).half() / 4 for size in ((96, 48), (48, 48))]
    norm, bias, proj_bias = (torch.randn(size, generator=generator) for size in (48, 96, 48))
    x = torch.randn(4, 6, 48, generator=generator)
    packed, wide = map(PackedHalf, weights), (weight.double() for weight in weights)
    head = Head(norm, 1e-6, next(packed), bias, next(packed), proj_bias)
    exact = Head(norm.double(), 1e-6, next(wide), bias.double(), next(wide), proj_bias.double())
    actual = head_scores(x, head, dola(), backend)
    expected = head_scores(x.double(), exact, dola(), "reference")
    assert torch.equal(actual.layer, expected.layer)
    assert torch.allclose(actual.scores.double().softmax(-1), expected.scores.softmax(-1), atol=1e-5)
    assert torch.allclose(actual.jsd.double(), expected.jsd, atol=1e-5)
