"""The plain-torch definition of everything this package computes, layer by layer, in the order of the mathematics.

Every fast path is compared with this file. Letters: L layers, R rows, B images, D hidden, E head width, V codes.
Float32 inside; float64 where the input is float64. Natural logarithms.

    h_j -> LN_out -> phi -> z_j          each layer j, conditional (c) and unconditional (u) rows
    z_j = z_j^u + w (z_j^c - z_j^u)      classifier-free guidance
    F = contrast(z_1 ... z_N)            `contrast.METHODS`: DoLa and others
    F = truncate(F)                      top-k and top-p
    code ~ softmax(F / T)                `sampling`, with the noise of `philox`
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels.contrast import METHODS
from janus_dola.kernels.packed import Packed
from janus_dola.kernels.sampling import tempered
from janus_dola.kernels.types import Head, SamplingTensors, Scores


def upcast(x: Tensor) -> Tensor:
    """Converts to the precision all arithmetic is done in: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Applies LN_out: h / sqrt(mean(h^2) + eps) * weight over the last dimension, in float32 or float64.

    NaN where mean(h^2) is infinite: finite h beyond 1e19 would count as 0, and any code be as likely as another.
    """
    h = upcast(hidden_states)
    squares = h.square().mean(-1, keepdim=True)
    return h * torch.rsqrt(squares.masked_fill(squares.isinf(), math.nan) + eps) * weight.to(h.dtype)


def apply_head(normed: Tensor, head: Head) -> Tensor:
    """Applies phi: Linear(D, E) -> GELU (exact, erf) -> Linear(E, V), or the last alone: [..., D] to [..., V]."""
    projected = normed if head.proj_weight is None else F.gelu(_linear(normed, head.proj_weight, head.proj_bias))
    return _linear(projected, head.code_weight, head.code_bias)


def _linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> Tensor:
    weight = weight.unpack() if isinstance(weight, Packed) else weight
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def guide(rows: Tensor, cfg_weight: float | Tensor | None) -> Tensor:
    """Applies classifier-free guidance: u + w (c - u), rows stacked as all conditional, then all unconditional.

    Args:
        rows: [..., 2B, X]; valid on logits, log-probabilities and whatever precedes the last Linear.
        cfg_weight: w, a number or [B]; None leaves the rows as they are.
    """
    if cfg_weight is None:
        return rows
    conditional, unconditional = rows.chunk(2, dim=-2)
    if isinstance(cfg_weight, Tensor):
        cfg_weight = cfg_weight.unsqueeze(-1)
    return unconditional + cfg_weight * (conditional - unconditional)


def truncate(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Sets F to -inf for codes that are not drawn: first by top-k, then by top-p of softmax(F / T) on the codes left.

    A code stays in top-k if fewer than k codes are more probable, and in top-p if the codes that are more probable hold
    less than p together. So codes with equal probability stay or go together, and the most probable one stays.
    (Holtzman et al., ICLR 2020, arXiv 1904.09751.)

    Args:
        scores: [B, V], F.
        temperature: [B], T >= 0; 0 counts as 1, since only the most probable code is drawn.
        top_k, top_p: [B] int64, 0 for all; [B] in (0, 1], 1 for all.
    """
    k, p = top_k.unsqueeze(-1), top_p.unsqueeze(-1)
    ordered = scores.sort(-1, descending=True).values
    last = torch.where(k > 0, k, scores.shape[-1]).clamp(max=scores.shape[-1]) - 1
    by_k = ordered >= ordered.gather(-1, last)
    mass = torch.softmax(tempered(ordered, temperature)[0].masked_fill(~by_k, -math.inf), -1)
    before = F.pad(mass.cumsum(-1), (1, -1))
    stays = by_k & ((before < p) | (before == 0) | (p >= 1))  # p may be 0 in float32
    least = ordered.masked_fill(~stays, math.inf).amin(-1, keepdim=True)
    return scores.masked_fill(scores < least, -math.inf)


def decide(logits: Tensor, sampling: SamplingTensors) -> Scores:
    """Contrasts guided logits [L, B, V] and leaves out the codes that top-k and top-p do not keep."""
    finite = (logits.amax((0, 2)) < math.inf) & (logits.amin((0, 2)) > -math.inf)  # not so for NaN either
    scores, layer, divergence = METHODS[sampling.method](logits, **sampling.contrast)
    if sampling.top_k is not None and sampling.top_p is not None:
        scores = truncate(scores, sampling.temperature, sampling.top_k, sampling.top_p)
    return Scores(scores, layer, divergence, finite)


def head_scores(hidden_states: Tensor, head: Head, sampling: SamplingTensors) -> Scores:
    """Computes the whole stage, one pass over the head per layer. See `janus_dola.kernels.head` for the arguments."""
    logits = []
    for layer in hidden_states:
        z = apply_head(rms_norm(layer, head.norm_weight, head.norm_eps), head)
        logits.append(guide(z, sampling.cfg_weight))
    return decide(torch.stack(logits), sampling)
