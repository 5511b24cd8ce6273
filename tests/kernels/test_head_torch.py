import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from janus_dola.kernels import head_torch
from janus_dola.kernels.block_torch import Matrix
from janus_dola.kernels.packed import PackedBfloat16, has_amx

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 65, 7), (2, 100, 30000)])
def test_linear_keeps_the_precision_of_its_input(dtype, shape):
    rows, size_in, size_out = shape
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, size_in, generator=g)
    weight, bias = torch.randn(size_out, size_in, generator=g).to(dtype), torch.randn(size_out, generator=g).to(dtype)
    x = x.to(torch.float64 if dtype == torch.float64 else torch.float32)
    actual = head_torch.linear(x, weight, bias)
    assert actual.dtype == x.dtype
    expected = x.double() @ weight.double().T + bias.double()
    parts = 4 if dtype == torch.bfloat16 and has_amx() else 1  # 17 digits of x, not 24
    assert torch.allclose(actual.double(), expected, atol=parts * 1e-5 * size_in**0.5)


class Operators(TorchDispatchMode):
    """Notes operators by name."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("rocm", [None, "7.0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_on_a_gpu_keeps_float32_results(monkeypatch, dtype, rocm):
    """Shapes and dtypes only: a fake tensor runs the same code without the device. ROCm refuses other dtypes of results."""
    monkeypatch.setattr(torch.version, "hip", rocm)
    with FakeTensorMode(), Operators() as operators:
        x = torch.empty(2, 3, 64, device="cuda")
        actual = head_torch.linear(
            x, torch.empty(100, 64, device="cuda", dtype=dtype), torch.empty(100, device="cuda", dtype=dtype)
        )
    assert (actual.shape, actual.dtype, actual.device.type) == ((2, 3, 100), torch.float32, "cuda")
    assert ("aten.mm.dtype" in operators.names) == (rocm is None)


needs_amx = pytest.mark.skipif(not has_amx(), reason="this processor has no AMX")


@needs_amx
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (7, 45, 77), (40, 2048, 300), (64, 192, 512)])
def test_bfloat16_products_find_what_rounding_took(rows, inputs, outputs):
    g = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, inputs, generator=g), torch.randn(outputs, inputs, generator=g).bfloat16()
    exact, sizes = x.double() @ weight.double().T, x.abs().double() @ weight.abs().double().T
    assert ((head_torch.linear(x, weight, None) - exact).abs() <= 2**-18 * (exact.abs() + sizes) + 1e-6 * sizes).all()


@needs_amx
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 10, 16, 17, 31, 40, 64, 80, 130])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(512, 192), (77, 45), (1200, 1000)])
def test_the_bits_of_a_row_depend_on_no_other_row_in_bfloat16(rows, outputs, inputs, packed):
    g = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=g).bfloat16()
    x, order = torch.randn(rows, inputs, generator=g), torch.randperm(rows, generator=g)
    others = torch.randn(rows, inputs, generator=g)
    others[-1] = x[-1]
    residual = torch.randn(outputs, generator=g).bfloat16().expand(rows, -1).contiguous()
    plain, weight = Matrix(weight), PackedBfloat16(weight) if packed else weight
    matrix = Matrix(weight)
    assert torch.equal(matrix(x.bfloat16()), plain(x.bfloat16()))
    assert torch.equal(matrix.added_to(residual, x.bfloat16()), plain.added_to(residual, x.bfloat16()))
    for product in (
        lambda x: head_torch.linear(x, weight, None),
        lambda x: matrix(x.bfloat16()),
        lambda x: matrix.added_to(residual, x.bfloat16()),
    ):
        expected = product(x)
        assert torch.equal(product(x[order]), expected[order])
        assert torch.equal(product(others)[-1], expected[-1])
