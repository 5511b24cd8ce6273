import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

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
