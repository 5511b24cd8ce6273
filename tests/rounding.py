"""Rounding as a test fixture: `pytest --rounding SEED` perturbs every product by noise of the size of its rounding.

What a test promises must hold for other roundings, too: another processor, thread count or library rounds otherwise. The
noise is keyed by the shape of the product and the place in a row, as rounding is: rows of one product are perturbed alike,
whatever else is in it, and products of another shape otherwise.
"""

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels import block_torch as block

RELATIVE = {torch.float32: 1e-7, torch.float64: 1e-16, torch.bfloat16: 0.0, torch.float16: 0.0}


class Rounding:
    """Replaces torch's products by perturbed ones while it is installed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._noise: dict[tuple, Tensor] = {}

    def _perturbed(self, product: Tensor, shape: tuple) -> Tensor:
        if product.device.type != "cpu" or not RELATIVE.get(product.dtype, 0):
            return product
        key = (*shape, product.shape[-1], product.dtype)
        if key not in self._noise:
            generator = torch.Generator().manual_seed(zlib.crc32(repr((self._seed, key)).encode()))
            noise = torch.randn(product.shape[-1], generator=generator, dtype=product.dtype)
            self._noise[key] = 1 + RELATIVE[product.dtype] * noise
        return product * self._noise[key]

    def install(self, monkeypatch) -> None:
        """Until the patches of `monkeypatch` are undone."""
        linear, addmm, attention = F.linear, torch.addmm, F.scaled_dot_product_attention

        def perturbed_linear(x, weight, bias=None):
            return self._perturbed(linear(x, weight, bias), ("linear", *x.shape))

        def perturbed_addmm(residual, x, weight, **options):
            return self._perturbed(addmm(residual, x, weight, **options), ("addmm", *x.shape))

        def perturbed_attention(query, key, value, *arguments, **options):
            return self._perturbed(attention(query, key, value, *arguments, **options), ("attention", *query.shape))

        onednn, onednn_added = block.onednn, block.onednn_added

        def perturbed_onednn(x, weight, bias):
            return self._perturbed(onednn(x, weight, bias), ("linear", *x.shape))

        def perturbed_onednn_added(residual, x, weight, bias):
            return self._perturbed(onednn_added(residual, x, weight, bias), ("linear", *x.shape))

        monkeypatch.setattr(block, "onednn", perturbed_onednn)
        monkeypatch.setattr(block, "onednn_added", perturbed_onednn_added)
        monkeypatch.setattr(F, "linear", perturbed_linear)
        monkeypatch.setattr(torch, "addmm", perturbed_addmm)
        monkeypatch.setattr(F, "scaled_dot_product_attention", perturbed_attention)
