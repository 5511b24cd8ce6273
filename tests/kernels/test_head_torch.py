import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from janus_dola.kernels import head_torch

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
    assert torch.allclose(actual.double(), expected, atol=1e-5 * size_in**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_on_a_gpu_keeps_float32_results(dtype):
    """Shapes and dtypes only: a fake tensor runs the same code without the device."""
    with FakeTensorMode():
        x = torch.empty(2, 3, 64, device="cuda")
        actual = head_torch.linear(
            x, torch.empty(100, 64, device="cuda", dtype=dtype), torch.empty(100, device="cuda", dtype=dtype)
        )
    assert (actual.shape, actual.dtype, actual.device.type) == ((2, 3, 100), torch.float32, "cuda")
