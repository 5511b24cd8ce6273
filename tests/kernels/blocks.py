"""Random blocks of a language model, shared by the tests of the block kernels."""

from dataclasses import replace

import torch

from janus_dola.kernels.block import BlockWeights, Matrix, Norm

HIDDEN, INNER = 72, 80


def random_block(
    heads, key_value_heads, size, bias, dtype, generator, device="cpu", hidden=HIDDEN, inner=INNER
) -> BlockWeights:
    """A block of random weights whose products are about as large as what goes in."""

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    def matrix(outputs, inputs):
        return Matrix(normal(outputs, inputs, scale=inputs**-0.5), normal(outputs) if bias else None)

    return BlockWeights(
        Norm(1 + normal(hidden, scale=0.2), 1e-6), matrix((heads + 2 * key_value_heads) * size, hidden),
        matrix(hidden, heads * size), Norm(1 + normal(hidden, scale=0.2), 1e-6), matrix(2 * inner, hidden),
        matrix(hidden, inner), heads, key_value_heads, size, size**-0.5,
    )  # fmt: skip


def in_double(weights: BlockWeights) -> BlockWeights:
    """The same weights in float64."""

    def matrix(m):
        return Matrix(m.weight.double(), None if m.bias is None else m.bias.double())

    def norm(n):
        return Norm(n.weight.double(), n.eps)

    return replace(
        weights, attention_norm=norm(weights.attention_norm), qkv=matrix(weights.qkv), output=matrix(weights.output),
        mlp_norm=norm(weights.mlp_norm), gate_up=matrix(weights.gate_up), down=matrix(weights.down),
    )  # fmt: skip
