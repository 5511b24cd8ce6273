"""The early-exit stage for all layers in one pass over the head's weights, on any device.

The same mathematics as `reference`, reordered: all layers are stacked into the rows of one matrix, and guidance is applied
before the last Linear, which halves its rows. That is exact because the two coefficients of guidance sum to 1:

    W (g_u + w (g_c - g_u)) + b = z_u + w (z_c - z_u),        z = W g + b
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels import reference
from janus_dola.kernels.types import Decoding, Head, Scores

_WEIGHTS_AT_ONCE = 1 << 21  # of 16-bit weights widened at a time: 8 MB of float32, which stays in a CPU's cache


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b accumulated and returned in the precision of x, float32 or float64, whatever that of the weights.

    Args:
        x: [..., K] float32 or float64.
        weight: [O, K] in any floating dtype.
        bias: [O].
    Returns:
        [..., O] in the dtype of x.
    """
    if weight.dtype == x.dtype:
        return F.linear(x, weight, bias)
    if x.is_cuda and x.dtype == torch.float32:
        # Tensor cores multiply 16-bit operands and accumulate in float32; only the result must not be rounded back.
        rows = x.flatten(0, -2).to(weight.dtype)
        product = torch.mm(rows, weight.T, out_dtype=torch.float32)
        return product.unflatten(0, x.shape[:-1]) + bias.float()
    chunk = max(1, _WEIGHTS_AT_ONCE // weight.shape[1])
    parts = [
        F.linear(x, w.to(x.dtype), b.to(x.dtype)) for w, b in zip(weight.split(chunk), bias.split(chunk), strict=True)
    ]
    return torch.cat(parts, -1)


def early_exit_logits(hidden_states: Tensor, head: Head, cfg_weight: float) -> Tensor:
    """Guided logits of all layers: [L, 2B, D] to [L, B, V]."""
    normed = reference.rms_norm(hidden_states, head.norm_weight, head.norm_eps)
    projected = F.gelu(linear(normed, head.proj_weight, head.proj_bias))
    return linear(reference.guide(projected, cfg_weight), head.code_weight, head.code_bias)


def early_exit_scores(hidden_states: Tensor, head: Head, decoding: Decoding) -> Scores:
    """The whole stage. See `janus_dola.kernels.early_exit` for the arguments."""
    logits = early_exit_logits(hidden_states, head, decoding.cfg_weight)
    return reference.decide(logits, reference.finite_images(hidden_states), decoding)
