"""How layers become a score: a table of methods.

A method takes the guided logits of the layers read, [L, B, V] with the final layer last, and its own numbers, [B] each. It
returns scores F, whose softmax is what codes are drawn from, with the layer and the divergence that a layer map shows. Its
settings class in `janus_dola.settings` says which layers are read, and names the numbers as the function's parameters are.

Float32 inside; float64 for float64 logits. Natural logarithms.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from janus_dola.kernels.params import LARGEST_WEIGHT

LN2 = math.log(2.0)
# So many codes at a time stay in a CPU's cache between two steps of a divergence: about four times as fast.
_CODES_AT_ONCE = 4096
LOWEST = -1e9  # log-probabilities below count as this
# Of a weight in a sum, whose largest is about 1. Denormal numbers are a hundred times as slow.
SMALLEST_LOG = -80.0
FAR = 60.0  # e^-60 adds nothing to 1


class Contrasted(NamedTuple):
    """What a method makes of the layers of each image."""

    scores: Tensor  # [B, V], F; -inf for codes that are never drawn
    layer: Tensor  # [B] int64, index into the stack of the layer that matters most; the final one for no contrast
    divergence: Tensor  # [B], its Jensen-Shannon divergence from the final layer, nats; 0 for no contrast


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Computes JSD(p || q) = 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, in nats, in [0, ln 2]: [..., V] to [...].

    With e = |log q - log p| and t = exp(-e) each code adds to 2 JSD

        max(p, q) (-(1 + t) log((1 + t) / 2) - e t)

    where log((1 + t) / 2) is log1p(expm1(-e) / 2), so that similar distributions keep their digits, and equal ones give
    exactly 0.

    Args:
        log_p, log_q: normalised log-probabilities, broadcastable; -inf allowed.
    """
    twice = torch.stack([_twice_jsd(p, q) for p, q in _cut(log_p, log_q)]).sum(0)
    return (0.5 * twice).clamp(0.0, LN2)


def _twice_jsd(log_p: Tensor, log_q: Tensor) -> Tensor:
    e = (log_p - log_q).abs_()
    below = torch.expm1(-e)  # t - 1
    t = below + 1
    # In place, since new memory is what takes time on a CPU.
    negative = below.mul_(0.5).log1p_().mul_(t + 1).addcmul_(e, t)  # t is 0 where e is large
    return -torch.maximum(log_p, log_q).clamp_(min=SMALLEST_LOG).exp_().mul_(negative).sum(-1)


def complement(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Computes 2 (ln 2 - JSD) as e^log_scale c: returns log_scale and c, [...] each; arguments as for `jensen_shannon`.

    Float32 has steps of 6e-8 at ln 2, and ends at e^-87; c keeps its digits where distributions hardly overlap. With e and
    t as there, each code adds, and all that it adds is positive,

        min(p, q) ((1 + t) log(1 + t) / t + e)
    """
    scales, sums = (torch.stack(each) for each in zip(*(_scaled(p, q) for p, q in _cut(log_p, log_q)), strict=True))
    log_scale = scales.amax(0)
    return log_scale, (sums * (scales - log_scale).clamp(min=SMALLEST_LOG).exp()).sum(0)


def _scaled(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scale of some codes' part in 2 (ln 2 - JSD), and this part, [...] each."""
    e, smaller = (log_p - log_q).abs_(), torch.minimum(log_p, log_q)
    t = torch.exp(-e)
    more = t + 1
    t.clamp_(min=1e-7)  # below, log(1 + t) / t is 1
    log_scale = smaller.amax(-1)
    weights = smaller.sub_(log_scale.unsqueeze(-1)).clamp_(min=SMALLEST_LOG).exp_()
    return log_scale, torch.log1p(t).div_(t).mul_(more).add_(e).mul_(weights).sum(-1)


def _cut(log_p: Tensor, log_q: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields some codes at a time, [..., n] each, none below `LOWEST`."""
    codes = log_q.shape[-1] if log_q.is_cuda else _CODES_AT_ONCE
    for p, q in zip(log_p.split(codes, -1), log_q.split(codes, -1), strict=True):
        yield p.clamp(min=LOWEST), q.clamp(min=LOWEST)


def select_premature(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns M = argmax_j JSD(p || q_j), the lowest index on an exact tie: [..., V] and [L-1, ..., V] to [...] int64.

    The largest JSD is the smallest complement, by which layers are compared where one of them is beyond ln 2 / 2.
    """
    log_scale, c = complement(log_p, log_q)
    scaled = c * (log_scale - log_scale.amin(0)).clamp(max=FAR).exp()
    farthest = scaled.argmin(0)
    near = (c * log_scale.exp()).amin(0) >= LN2
    if not _can_look_into(near):
        return torch.where(near, jensen_shannon(log_p, log_q).argmax(0), farthest)
    if near.any():
        farthest[near] = jensen_shannon(log_p[near], log_q[:, near]).argmax(0)
    return farthest


def _can_look_into(tensor: Tensor) -> bool:
    """Returns whether the host need not wait for a tensor's values."""
    return tensor.device.type == "cpu"


def plausible(log_q_final: Tensor, log_alpha: float | Tensor) -> Tensor:
    """Returns V_head = {x : q_N(x) >= alpha max q_N}: [..., V] to [..., V] bool; alpha 0 admits all codes, 1 the top."""
    return log_q_final >= log_q_final.amax(-1, keepdim=True) + log_alpha


def log_ratio(
    log_q_final: Tensor,
    log_q_premature: Tensor,
    admitted: Tensor,
    final_weight: float | Tensor = 1.0,
    premature_weight: float | Tensor = 1.0,
) -> Tensor:
    """Returns F = w_N log q_N - w_M log q_M on the admitted codes and -inf elsewhere, [..., V].

    Zeros as log q_M: no contrast. The weights, up to `LARGEST_WEIGHT`, are numbers or fit the other tensors.
    """
    lowest = torch.finfo(log_q_final.dtype).min / LARGEST_WEIGHT
    ratio = final_weight * log_q_final - premature_weight * log_q_premature.clamp(min=lowest)
    return ratio.masked_fill(~admitted, -math.inf)


def admitted_by_dola(final_logits: Tensor, log_alpha: Tensor, **others: Tensor) -> Tensor:
    """Returns V_head, [B, V] bool, from the final layer's logits [B, V]; a code with the logit -inf does not count."""
    return plausible(final_logits.log_softmax(-1), log_alpha.unsqueeze(-1))


def dola(
    logits: Tensor,
    log_alpha: Tensor,
    premature: Tensor,
    final_weight: Tensor,
    premature_weight: Tensor,
    everywhere: bool = False,
) -> Contrasted:
    """Decodes by contrasting layers: Chuang et al., ICLR 2024, arXiv 2309.03883, sections 2.1 to 2.3.

        q_j = softmax(z_j)
        M = argmax_j JSD(q_N, q_j)                     the premature layer
        V_head = {x : q_N(x) >= alpha max q_N}
        F(x) = w_N log q_N(x) - w_M log q_M(x)         on V_head, -inf elsewhere

    Theirs is w_N = w_M = 1. With w_N = 1 + beta and w_M = beta it is a step of finite size from the final distribution away
    from the premature one, as in contrastive decoding (Li et al., ACL 2023, arXiv 2210.15097) and autoguidance (Karras et
    al., NeurIPS 2024, arXiv 2406.02507).

    Args:
        log_alpha: [B]; -inf admits every code.
        premature: [B] int64: index into the stack; the last means no contrast (F = log q_N), and -1 takes M by JSD.
        final_weight, premature_weight: [B], w_N and w_M, in 0 .. `LARGEST_WEIGHT`.
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
    detached = log_q.detach()  # the divergence chooses a layer, no more
    layer = torch.where(premature < 0, select_premature(detached[final], detached[:final]), premature)
    none, early = layer == final, log_q[layer, torch.arange(images, device=logits.device)]
    divergence = jensen_shannon(detached[final], early.detach())
    early = early.masked_fill(none.unsqueeze(-1), 0.0)
    weights = final_weight.masked_fill(none, 1.0).unsqueeze(-1), premature_weight.unsqueeze(-1)
    scores = log_ratio(log_q[final], early, admitted, *weights)
    return Contrasted(scores, layer, divergence)


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
