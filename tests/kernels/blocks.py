"""Random blocks of a language model, shared by the tests of the block kernels."""

from collections import Counter
from dataclasses import replace
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from janus_dola.kernels.block_torch import Beside, BlockWeights, Matrix, Norm

HIDDEN, INNER = 72, 80


def random_block(
    heads,
    key_value_heads,
    size,
    bias,
    dtype,
    generator,
    device="cpu",
    hidden=HIDDEN,
    inner=INNER,
    rotated=None,
    behind=(),
) -> BlockWeights:
    """A block of random weights whose products are about as large as what goes in.

    `bias` is "qkv" where only these have one; `behind` names what has a norm there.
    """

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    def matrix(outputs, inputs, biased=bias is True):
        return Matrix(normal(outputs, inputs, scale=inputs**-0.5), normal(outputs) if biased else None)

    def beside(*outputs, biased=bias is True):
        return Beside(tuple(matrix(each, hidden, biased) for each in outputs))

    def norm():
        return Norm(1 + normal(hidden, scale=0.2), 1e-6)

    keys = key_value_heads * size
    return BlockWeights(
        norm(), beside(heads * size, keys, keys, biased=bool(bias)), matrix(hidden, heads * size), norm(),
        beside(inner, inner), matrix(hidden, inner), heads, key_value_heads, size, size**-0.5, rotated,
        **{f"{name}_norm_after": norm() for name in behind},
    )  # fmt: skip


def in_double(weights: BlockWeights) -> BlockWeights:
    """The same weights in float64."""

    def matrix(m):
        return Matrix(m.weight.double(), None if m.bias is None else m.bias.double())

    def beside(products):
        return Beside(tuple(map(matrix, products.products)))

    def norm(n):
        return None if n is None else Norm(n.weight.double(), n.eps)

    return replace(
        weights, attention_norm=norm(weights.attention_norm), qkv=beside(weights.qkv), output=matrix(weights.output),
        mlp_norm=norm(weights.mlp_norm), gate_up=beside(weights.gate_up), down=matrix(weights.down),
        attention_norm_after=norm(weights.attention_norm_after), mlp_norm_after=norm(weights.mlp_norm_after),
    )  # fmt: skip


def _kernels():
    """All kernels of the blocks, and those around a pass: modules and names."""
    from janus_dola.kernels.gpu import attention, block_matmul, block_rows, feeding

    for module in (attention, block_matmul, block_rows, feeding):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            yield module, name


class Kernel:
    """Stands in for a kernel: what is launched is noted, and done by the kernel if there is one."""

    def __init__(self, note, kernel=None):
        self.note, self.kernel = note, kernel

    def __getitem__(self, grid):
        def launch(*args, **constants):
            self.note()
            if self.kernel is not None:
                self.kernel[grid](*args, **constants)

        return launch


def count_launches(monkeypatch) -> Counter:
    """Of the kernels of the blocks, by name, from now on."""
    seen = Counter()
    for module, name in _kernels():
        note = partial(lambda name: seen.update([name]), name)
        monkeypatch.setattr(module, name, Kernel(note, getattr(module, name)))
    return seen


class Launches(TorchDispatchMode):
    """Counts what a GPU would be given: operations of torch that compute, and kernels of ours, which it leaves out."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        monkeypatch.setattr("janus_dola.kernels.gpu.launch.generation_here", lambda device: "sm_90")
        for module, name in _kernels():
            monkeypatch.setattr(module, name, Kernel(partial(self.names.append, name)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and not func.name().startswith(("aten::empty", "aten::_unsafe_view")):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))
