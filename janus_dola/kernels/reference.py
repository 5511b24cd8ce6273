"""The plain-torch definition of everything this package computes, layer by layer, in the order of the mathematics.

Every fast path is compared with this file. Letters: L layers, R rows, B images, D hidden, E head width, V codes.
Float32 inside; float64 where the input is float64. Natural logarithms.

    h_j -> LN_out -> phi -> z_j          each layer j, conditional (c) and unconditional (u) rows
    z_j = z_j^u + w (z_j^c - z_j^u)      classifier-free guidance
    q_j = softmax(z_j)
    M = argmax_j JSD(q_N, q_j)           the premature layer
    V_head = {x : q_N(x) >= alpha max q_N}
    F(x) = log q_N(x) - log q_M(x) on V_head, -inf elsewhere
    p_hat = softmax(F); a token is drawn from softmax(F / T), from the codes that top-k and top-p leave of it

DoLa: Chuang et al., ICLR 2024, arXiv 2309.03883, sections 2.1 to 2.3.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels.packed import PackedHalf
from janus_dola.kernels.types import Head, SamplingTensors, Scores, log_of

LN2 = math.log(2.0)
# What lies between two steps of a divergence then stays in a CPU's cache: about four times as fast.
_CODES_AT_ONCE = 4096


def upcast(x: Tensor) -> Tensor:
    """`x` in the precision all arithmetic is done in: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """LN_out: h / sqrt(mean(h^2) + eps) * weight, over the last dimension.

    Args:
        hidden_states: [..., D], the output of a block before any norm.
        weight: [D].
    Returns:
        [..., D] float32 (float64 for float64 input).
    """
    h = upcast(hidden_states)
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps) * weight.to(h.dtype)


def apply_head(normed: Tensor, head: Head) -> Tensor:
    """phi: Linear(D, E) + bias -> GELU (exact, erf) -> Linear(E, V) + bias, or that alone: [..., D] to [..., V]."""
    projected = normed if head.proj_weight is None else F.gelu(_linear(normed, head.proj_weight, head.proj_bias))
    return _linear(projected, head.code_weight, head.code_bias)


def _linear(x: Tensor, weight: Tensor | PackedHalf, bias: Tensor | None) -> Tensor:
    weight = weight.unpack() if isinstance(weight, PackedHalf) else weight
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def guide(rows: Tensor, cfg_weight: float | Tensor | None) -> Tensor:
    """Classifier-free guidance: u + w (c - u), rows stacked as all conditional, then all unconditional.

    Args:
        rows: [..., 2B, X]; valid on logits, log-probabilities and whatever precedes the last Linear.
        cfg_weight: w, a number or [B]; None leaves the rows as they are, [..., B, X].
    Returns:
        [..., B, X].
    """
    if cfg_weight is None:
        return rows
    conditional, unconditional = rows.chunk(2, dim=-2)
    if isinstance(cfg_weight, Tensor):
        cfg_weight = cfg_weight.unsqueeze(-1)
    return unconditional + cfg_weight * (conditional - unconditional)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """JSD(p || q) = 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, in nats.

    With d = log q - log p:  log m - log p = log((1 + e^d) / 2) = max(d, 0) + log1p(e^-|d|) - ln 2, and likewise for q
    with -d, so that m itself is never formed and equal distributions give exactly 0. Probabilities below e^-80 count as
    e^-80, which adds less than 1e-32 a code; smaller ones are denormal in float32, and a hundred times as slow.

    Args:
        log_p, log_q: normalised log-probabilities, [..., V], broadcastable; -inf allowed.
    Returns:
        [...], in [0, ln 2].
    """
    codes = log_q.shape[-1] if log_q.is_cuda else _CODES_AT_ONCE
    parts = zip(log_p.split(codes, -1), log_q.split(codes, -1), strict=True)
    return (0.5 * torch.stack([_twice_jensen_shannon(p, q) for p, q in parts]).sum(0)).clamp(0.0, LN2)


def _twice_jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_p, log_q = log_p.clamp(min=-80), log_q.clamp(min=-80)
    d = log_q - log_p
    rest = LN2 - torch.log1p(torch.exp(-d.abs()))
    twice = log_p.exp() * (rest - d.clamp(min=0)) + log_q.exp() * (rest + d.clamp(max=0))
    return twice.sum(-1)


def select_premature(jsd: Tensor) -> Tensor:
    """M = argmax_j JSD_j per image, the lowest index on an exact tie: [L-1, B] to [B] int64."""
    return jsd.argmax(0)


def plausible(log_q_final: Tensor, alpha: float) -> Tensor:
    """V_head = {x : q_N(x) >= alpha max q_N}: [..., V] to [..., V] bool. alpha in [0, 1]; 0 admits all, 1 only the top."""
    return _plausible(log_q_final, log_of(alpha))


def _plausible(log_q_final: Tensor, log_alpha: float | Tensor) -> Tensor:
    return log_q_final >= log_q_final.amax(-1, keepdim=True) + log_alpha


def contrast(log_q_final: Tensor, log_q_premature: Tensor | None, alpha: float) -> Tensor:
    """F = log q_N - log q_M on V_head, -inf elsewhere; p_hat is its softmax.

    Args:
        log_q_final, log_q_premature: normalised log-probabilities [..., V]. A premature layer of None is the final layer
            itself, and means no contrast: F = log q_N on V_head.
        alpha: in [0, 1].
    Returns:
        [..., V]. A code with q_M = 0 counts as one with the smallest representable log-probability.
    """
    if log_q_premature is None:
        log_q_premature = torch.zeros_like(log_q_final)
    return _contrast(log_q_final, log_q_premature, plausible(log_q_final, alpha))


def _contrast(log_q_final: Tensor, log_q_premature: Tensor, admitted: Tensor) -> Tensor:
    ratio = log_q_final - log_q_premature.clamp(min=torch.finfo(log_q_final.dtype).min)
    return ratio.masked_fill(~admitted, -math.inf)


def truncate(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """F of the codes that are drawn from, -inf for others: first top-k, then top-p of softmax(F / T) on what that leaves.

    Code x stays in top-k where fewer than k codes are more probable, and in top-p where the codes that are more probable
    hold less than p together. So codes of one probability stay or go together, and the most probable one stays.
    (Holtzman et al., ICLR 2020, arXiv 1904.09751.)

    Args:
        scores: [B, V], F.
        temperature: [B], T >= 0; at 0, where only the first matters, as at 1.
        top_k: [B] int64, 0 for all.
        top_p: [B] in (0, 1], 1 for all.
    """
    T, k, p = (each.unsqueeze(-1) for each in (temperature, top_k, top_p))
    ordered = scores.sort(-1, descending=True).values
    last = torch.where(k > 0, k, scores.shape[-1]).clamp(max=scores.shape[-1]) - 1
    by_k = ordered >= ordered.gather(-1, last)
    mass = torch.softmax((ordered / T.masked_fill(T == 0, 1)).masked_fill(~by_k, -math.inf), -1)
    before = F.pad(mass.cumsum(-1), (1, -1))
    stays = by_k & ((before < p) | (p >= 1))
    least = ordered.masked_fill(~stays, math.inf).amin(-1, keepdim=True)
    return scores.masked_fill(scores < least, -math.inf)


def decide(logits: Tensor, finite: Tensor, sampling: SamplingTensors) -> Scores:
    """From guided logits to the contrasted distribution.

    Args:
        logits: [L, B, V], the final layer last.
        finite: [B] bool, whether the hidden states behind them are finite.
        sampling: of each image; guidance is in the logits already.
    """
    log_q = torch.log_softmax(logits, -1)
    finite = finite & (logits.amax((0, 2)) < math.inf) & (logits.amin((0, 2)) > -math.inf)  # not so for NaN either
    admitted = _plausible(log_q[-1], sampling.log_alpha.unsqueeze(-1))
    final, batch = logits.shape[0] - 1, logits.shape[1]
    layer = torch.full((batch,), final, device=logits.device)
    if final == 0:  # nothing to contrast with
        scores = _contrast(log_q[0], torch.zeros_like(log_q[0]), admitted)
        return Scores(_truncated(scores, sampling), layer, logits.new_zeros(batch), finite)
    jsd = jensen_shannon(log_q[final], log_q[:final])
    layer = torch.where(sampling.premature < 0, select_premature(jsd), sampling.premature)
    image = torch.arange(batch, device=logits.device)
    none = layer == final  # no contrast, as if log q_M were 0
    scores = _contrast(log_q[final], log_q[layer, image].masked_fill(none.unsqueeze(-1), 0.0), admitted)
    jsd = jsd[layer.clamp(max=final - 1), image].masked_fill(none, 0.0)
    return Scores(_truncated(scores, sampling), layer, jsd, finite)


def _truncated(scores: Tensor, sampling: SamplingTensors) -> Tensor:
    if sampling.top_k is None or sampling.top_p is None:
        return scores
    return truncate(scores, sampling.temperature, sampling.top_k, sampling.top_p)


def finite_images(hidden_states: Tensor, images: int) -> Tensor:
    """Whether all rows of an image are finite in every layer: [L, R, D] with R = B or 2B to [B] bool."""
    return hidden_states.abs().amax((0, 2)).unflatten(0, (-1, images)).amax(0) < math.inf


def head_scores(hidden_states: Tensor, head: Head, sampling: SamplingTensors) -> Scores:
    """The whole stage, one pass over the head per layer. See `janus_dola.kernels.head` for the arguments."""
    logits = []
    for layer in hidden_states:
        z = apply_head(rms_norm(layer, head.norm_weight, head.norm_eps), head)
        logits.append(guide(z, sampling.cfg_weight))
    finite = finite_images(hidden_states, len(sampling.temperature))
    return decide(torch.stack(logits), finite, sampling)
