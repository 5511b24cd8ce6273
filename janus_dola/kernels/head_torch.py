"""The torch backend: the head stage for all layers in one pass over the head's weights, on any device.

The same mathematics as `reference`, reordered: all layers are stacked into the rows of one matrix, and guidance is applied
before the last Linear, which halves its rows. That is exact because the two coefficients of guidance sum to 1:

    W (g_u + w (g_c - g_u)) + b = z_u + w (z_c - z_u),        z = W g + b
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels import reference
from janus_dola.kernels.block_torch import Matrix
from janus_dola.kernels.packed import Packed, has_amx
from janus_dola.kernels.types import Head, SamplingTensors, Scores

_WEIGHTS_AT_ONCE = 1 << 21  # 16-bit weights widened at a time: 8 MB in float32, which stays in a CPU's cache


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
    """Computes x W^T + b, [..., K] to [..., O], accumulated and returned in the precision of x, float32 or float64.

    With a CPU's tiles (AMX), products with bfloat16 weights take the first 17 binary digits of x.
    """
    if weight.dtype == x.dtype:
        return Matrix(weight, bias)(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    on_tiles = x.device.type == "cpu" and (x.dtype, weight.dtype) == (torch.float32, torch.bfloat16) and has_amx()
    if isinstance(weight, Packed) or on_tiles:
        product = _by_bfloat16(x.flatten(0, -2), Matrix(weight)).unflatten(0, x.shape[:-1])
    elif x.is_cuda and x.dtype == torch.float32 and torch.version.hip is None:  # ROCm has no such product
        # Tensor cores multiply 16-bit operands and accumulate in float32. x goes in as a sum of two 16-bit parts, which hold
        # twice the digits. One part would miss the promised accuracy, since guidance multiplies the error by w.
        rows = x.flatten(0, -2)
        coarse = rows.to(weight.dtype)
        halves = torch.cat([coarse, (rows - coarse.float()).to(weight.dtype)])
        product = torch.mm(halves, weight.T, out_dtype=torch.float32).unflatten(0, (2, *x.shape[:-1])).sum(0)
    else:
        chunk = max(1, _WEIGHTS_AT_ONCE // weight.shape[1])
        product = torch.cat([linear(x, part.to(x.dtype), None) for part in weight.split(chunk)], -1)
    return product if bias is None else product + bias.to(x.dtype)


def _by_bfloat16(rows: Tensor, matrix: Matrix) -> Tensor:
    """Computes float32 rows W^T, [N, K] to [N, O], by bfloat16 products, which round what they return.

    x is a sum h + l of two parts. What rounding took from y = W h is found by a second product, since oneDNN adds before it
    rounds: W x = y - (y - W h) + W l, which is off by 2^-18 of itself at the most where y alone is off by 2^-9.
    """
    coarse = rows.to(matrix.weight.dtype)
    fine = (rows - coarse.float()).to(matrix.weight.dtype)
    of_coarse, of_fine = matrix(torch.cat([coarse, fine])).chunk(2)
    # In place, since new memory is what takes time on a CPU.
    return of_coarse.float().add_(of_fine).sub_(matrix.added_to(of_coarse, -coarse))


def head_logits(hidden_states: Tensor, head: Head, cfg_weight: float | Tensor | None) -> Tensor:
    """Computes the guided logits of all layers: [L, R, D] to [L, B, V]; `cfg_weight` as for `reference.guide`."""
    x = reference.rms_norm(hidden_states, head.norm_weight, head.norm_eps)
    if head.proj_weight is not None:
        x = F.gelu(linear(x, head.proj_weight, head.proj_bias))
    return linear(reference.guide(x, cfg_weight), head.code_weight, head.code_bias)


def head_scores(hidden_states: Tensor, head: Head, sampling: SamplingTensors) -> Scores:
    """Computes the whole stage. See `janus_dola.kernels.head` for the arguments."""
    return reference.decide(head_logits(hidden_states, head, sampling.cfg_weight), sampling)
