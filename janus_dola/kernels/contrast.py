"""How layers become a score: a table of methods.

A method takes the guided logits of the layers read, [L, B, V] with the final layer last, and its own numbers, [B] each. It
returns scores F, whose softmax is what codes are drawn from, with the layer and the divergence that a layer map shows. Its
settings class in `janus_dola.settings` says which layers are read, and names the numbers as the function's parameters are.

Float32 inside; float64 for float64 logits. Natural logarithms.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LN2 = math.log(2.0)
# So many codes at a time stay in a CPU's cache between two steps of a divergence: about four times as fast.
_CODES_AT_ONCE = 4096


class Contrasted(NamedTuple):
    """What a method makes of the layers of each image."""

    scores: Tensor  # [B, V], F; -inf for codes that are never drawn
    layer: Tensor  # [B] int64, index into the stack of the layer that matters most; the final one for no contrast
    divergence: Tensor  # [B], its Jensen-Shannon divergence from the final layer, nats; 0 for no contrast


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns JSD(p || q) = 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, in nats: [..., V] to [...] in [0, ln 2].

    With d = log q - log p:  log m - log p = log((1 + e^d) / 2) = max(d, 0) + log1p(e^-|d|) - ln 2, and likewise for q
    with -d, so that m itself is never formed and equal distributions give exactly 0. Probabilities below e^-80 count as
    e^-80, which adds less than 1e-32 per code; smaller ones are denormal in float32, and a hundred times as slow.

    Args:
        log_p, log_q: normalised log-probabilities, broadcastable; -inf allowed.
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
    """Returns M = argmax_j JSD_j per image, the lowest index on an exact tie: [L-1, B] to [B] int64."""
    return jsd.argmax(0)


def plausible(log_q_final: Tensor, log_alpha: float | Tensor) -> Tensor:
    """Returns V_head = {x : q_N(x) >= alpha max q_N}: [..., V] to [..., V] bool; alpha 0 admits all codes, 1 the top."""
    return log_q_final >= log_q_final.amax(-1, keepdim=True) + log_alpha


def log_ratio(log_q_final: Tensor, log_q_premature: Tensor, admitted: Tensor) -> Tensor:
    """Returns F = log q_N - log q_M on the admitted codes and -inf elsewhere, [..., V]; zeros as log q_M: no contrast."""
    ratio = log_q_final - log_q_premature.clamp(min=torch.finfo(log_q_final.dtype).min)
    return ratio.masked_fill(~admitted, -math.inf)


def admitted_by_dola(final_logits: Tensor, log_alpha: Tensor, premature: Tensor) -> Tensor:
    """Returns V_head, [B, V] bool, from the final layer's logits [B, V]; a code with the logit -inf does not count."""
    return plausible(final_logits.log_softmax(-1), log_alpha.unsqueeze(-1))


def dola(logits: Tensor, log_alpha: Tensor, premature: Tensor, everywhere: bool = False) -> Contrasted:
    """Decodes by contrasting layers: Chuang et al., ICLR 2024, arXiv 2309.03883, sections 2.1 to 2.3.

        q_j = softmax(z_j)
        M = argmax_j JSD(q_N, q_j)                     the premature layer
        V_head = {x : q_N(x) >= alpha max q_N}
        F(x) = log q_N(x) - log q_M(x)                 on V_head, -inf elsewhere

    Args:
        log_alpha: [B]; -inf admits every code.
        premature: [B] int64: index into the stack; the last means no contrast (F = log q_N), and -1 takes M by JSD.
        everywhere: gives F for the other codes, too.
    """
    log_q = torch.log_softmax(logits, -1)
    admitted = plausible(log_q[-1], log_alpha.unsqueeze(-1))
    if everywhere:
        admitted = torch.ones_like(admitted)
    final, images = logits.shape[0] - 1, logits.shape[1]
    if final == 0:  # nothing to contrast with
        scores = log_ratio(log_q[0], torch.zeros_like(log_q[0]), admitted)
        return Contrasted(scores, torch.full((images,), final, device=logits.device), logits.new_zeros(images))
    jsd = jensen_shannon(log_q[final], log_q[:final])
    layer = torch.where(premature < 0, select_premature(jsd), premature)
    image = torch.arange(images, device=logits.device)
    none = layer == final
    scores = log_ratio(log_q[final], log_q[layer, image].masked_fill(none.unsqueeze(-1), 0.0), admitted)
    return Contrasted(scores, layer, jsd[layer.clamp(max=final - 1), image].masked_fill(none, 0.0))


def admitted_by_sled(final_logits: Tensor, evolution_rate: Tensor, evolution_scale: Tensor) -> Tensor:
    """Returns I, [B, V] bool, from the final layer's logits [B, V]; a code with the logit -inf does not count."""
    last = evolution_scale.clamp(max=final_logits.shape[-1]).unsqueeze(-1) - 1
    return final_logits >= final_logits.sort(-1, descending=True).values.gather(-1, last)


def sled(logits: Tensor, evolution_rate: Tensor, evolution_scale: Tensor, everywhere: bool = False) -> Contrasted:
    """Evolves the final logits towards what early layers estimate: SLED, Zhang et al., NeurIPS 2024, arXiv 2411.02433.

        I = the k codes with the largest z_N           ties with the k-th are in it, too
        m_j(x) = max(0, cos(z_j - z_N, q_j - e_x))^2   x in I, each early layer j; q_j = softmax(z_j), e_x is one-hot
        L(x) = sum_j m_j(x) / sum_j sum_y m_j(y)       the latent distribution; 0 where no cosine is positive
        F(x) = z_N(x) - rate (q_N(x) - L(x))           on I, -inf elsewhere

    z_j - z_N stands for the gradient of KL(truth || q_j) at z_j, and q_j - e_x is that gradient if x were the truth. The
    layer returned is the one with the largest sum_x m_j(x); the final one, with divergence 0, where no cosine is positive.

    Args:
        logits: [L, B, V], L > 1. Not invariant to a shift of one layer's logits, so log-probabilities do not replace them.
        evolution_rate: [B], >= 0; 0 leaves z_N on I.
        evolution_scale: [B] int64, k >= 1.
        everywhere: gives F for the other codes, too; their L is 0.
    """
    final, log_q = logits[-1], logits.log_softmax(-1)
    chosen = admitted_by_sled(final, evolution_rate, evolution_scale)
    # The cosines need only sums over the codes. They leave out a layer's top code, relative to which d is taken: where it
    # has nearly all probability, 1 - q and the sum of q^2 over the others would cancel.
    difference, q = logits[:-1] - final, log_q[:-1].exp()
    top = q.argmax(-1, keepdim=True)
    is_top = torch.zeros_like(q, dtype=torch.bool).scatter(-1, top, True)
    others, d = q.masked_fill(is_top, 0.0), difference - difference.gather(-1, top)
    product = (others * d).sum(-1, keepdim=True) - d  # <z_j - z_N, q_j - e_x>
    rest, squares = others.sum(-1, keepdim=True), others.square().sum(-1, keepdim=True)
    squared_length = torch.where(is_top, rest.square() + squares, 1 - 2 * q + squares + q.gather(-1, top).square())
    lengths = difference.norm(dim=-1, keepdim=True).clamp(min=1e-8) * squared_length.sqrt().clamp(min=1e-8)
    m = (product / lengths).clamp(min=0).square().masked_fill(~chosen, 0.0)
    weights = m.sum(-1)  # [L - 1, B]
    total = weights.sum(0)
    latent = m.sum(0) / total.clamp(min=torch.finfo(total.dtype).tiny).unsqueeze(-1)
    scores = final - evolution_rate.unsqueeze(-1) * (log_q[-1].exp() - latent)
    layer = torch.where(total > 0, weights.argmax(0), len(weights))
    divergence = jensen_shannon(log_q[-1], log_q[layer, torch.arange(len(layer), device=layer.device)])
    return Contrasted(scores if everywhere else scores.masked_fill(~chosen, -math.inf), layer, divergence)


METHODS: dict[str, Callable[..., Contrasted]] = {"dola": dola, "sled": sled}
# Which codes a method's scores are drawn from, for callers that leave out others first.
ADMITTED: dict[str, Callable[..., Tensor]] = {"dola": admitted_by_dola, "sled": admitted_by_sled}
