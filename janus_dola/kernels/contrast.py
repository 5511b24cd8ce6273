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
_NUMBERS_AT_ONCE = (
    1 << 16
)  # of some images: memory of larger steps goes back to the system, and is cleared for the next
LOWEST = -1e9  # log-probabilities below count as this
SMALLEST_LOG = -80.0  # of a weight in a sum, whose largest weight is 1
FAR = 60.0  # log1p(e^-60) is e^-60 to the last digit
SERIES = (31 / 1575, -17 / 360, 1 / 9, -1 / 4, 1 / 2)  # of x tanh x - log cosh x, by the powers x^10, x^8 ... x^2
NEAR = {torch.float32: 0.5, torch.float64: 2.0**-6}  # up to which e the series is exact to 1e-8, to 1e-16


class Contrasted(NamedTuple):
    """What a method makes of the layers of each image."""

    scores: Tensor  # [B, V], F; -inf for codes that are never drawn
    layer: Tensor  # [B] int64, index into the stack of the layer that matters most; the final one for no contrast
    divergence: Tensor  # [B], its Jensen-Shannon divergence from the final layer, nats; 0 for no contrast


class ScaledSum(NamedTuple):
    """Sums of any size, e^log_scale * value, [...] each: float32 alone ends at e^-87, and at ln 2 it has steps of 6e-8."""

    log_scale: Tensor
    value: Tensor

    def over(self, log_scale: Tensor) -> Tensor:
        """Returns the sums over e^log_scale; so large ones that nothing depends on them are cut off."""
        return self.value * (self.log_scale - log_scale).clamp(SMALLEST_LOG, -SMALLEST_LOG).exp()


class Divergence(NamedTuple):
    """The Jensen-Shannon divergence of distributions, [...], so that any two can be compared; see `select_premature`."""

    jsd: Tensor  # nats, in [0, ln 2]
    twice: ScaledSum  # 2 JSD
    twice_complement: ScaledSum  # 2 (ln 2 - JSD)


def diverge(log_p: Tensor, log_q: Tensor) -> Divergence:
    """Computes JSD(p || q) = 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, and ln 2 - JSD: [..., V] to [...].

    With e = |log q - log p|, t = exp(-e) and l = log1p(t) each code adds a positive number, so that no digits cancel:

        2 JSD           max(p, q) ((1 + t) (ln 2 - l) - e t)
        2 (ln 2 - JSD)  min(p, q) ((1 + t) l / t + e)

    Near e = 0, where digits of ln 2 - l cancel, the first is max(p, q) (1 + t) k(e / 2), where k(x) = x tanh x - log cosh x
    is a series. Equal distributions give exactly 0. Both sums are scaled, so that layers are told apart whose JSD is 0 or
    ln 2 to the last digit.

    Args:
        log_p, log_q: normalised log-probabilities, broadcastable; -inf allowed.
    """
    codes = log_q.shape[-1] if log_q.is_cuda else _CODES_AT_ONCE
    parts = [_of_codes(p, q) for p, q in zip(log_p.split(codes, -1), log_q.split(codes, -1), strict=True)]
    twice, complement = (_scaled_sum(*(torch.stack(each, -1) for each in zip(*sums, strict=True)))
                         for sums in zip(*parts, strict=True))  # fmt: skip
    jsd, rest = (0.5 * each.log_scale.exp() * each.value for each in (twice, complement))
    return Divergence(torch.where(rest < LN2 / 2, LN2 - rest, jsd).clamp(0.0, LN2), twice, complement)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns JSD(p || q) in nats, in [0, ln 2]: `diverge` has the formula and the arguments."""
    return diverge(log_p, log_q).jsd


def _of_codes(log_p: Tensor, log_q: Tensor) -> tuple[ScaledSum, ScaledSum]:
    """Sums 2 JSD and 2 (ln 2 - JSD) over some codes."""
    images = log_p.shape[-2] if log_p.ndim > 1 and log_p.shape[-2:] == log_q.shape[-2:] else 1
    if images > 1 and log_q.numel() > _NUMBERS_AT_ONCE and not log_q.is_cuda:
        halves = zip(*(each.split((images + 1) // 2, -2) for each in (log_p, log_q)), strict=True)
        sums = zip(*(_of_codes(p, q) for p, q in halves), strict=True)
        twice, complement = (ScaledSum(*(torch.cat(each, -1) for each in zip(*two, strict=True))) for two in sums)
        return twice, complement
    log_p, log_q = log_p.clamp(min=LOWEST), log_q.clamp(min=LOWEST)
    larger, smaller = torch.maximum(log_p, log_q), torch.minimum(log_p, log_q)
    difference = larger - smaller
    e = difference.clamp(max=FAR)
    t = torch.exp(-e)
    more, log1p_t, square = 1 + t, torch.log1p(t), (0.5 * e).square()
    series = SERIES[0] * square
    for coefficient in SERIES[1:]:
        series = (series + coefficient) * square
    # On a CPU sign is several times as fast as a comparison, and lerp, which is exact for 0 and 1, as where.
    near = (NEAR[e.dtype] - e).sign().clamp(min=0)
    factor = torch.lerp((LN2 - log1p_t) * more - e * t, series * more, near)
    apart = larger + LOWEST * (1 - difference.sign())  # what adds nothing does not set the scale
    return _scaled_sum(apart, factor), _scaled_sum(smaller, more * log1p_t / t + difference)


def _scaled_sum(log_weights: Tensor, factors: Tensor) -> ScaledSum:
    """Sums e^log_weights * factors over the last dimension."""
    log_scale = log_weights.amax(-1)
    # Denormal numbers are a hundred times as slow.
    weights = (log_weights - log_scale.unsqueeze(-1)).clamp(min=SMALLEST_LOG).exp()
    return ScaledSum(log_scale, (weights * factors).sum(-1))


def select_premature(divergence: Divergence) -> Tensor:
    """Returns M = argmax_j JSD_j, the lowest index on an exact tie: [L-1, ...] to [...] int64.

    The largest JSD is the smallest complement, by which layers are compared where one of them is beyond ln 2 / 2.
    """
    twice, complement = divergence.twice, divergence.twice_complement
    most, least = twice.over(twice.log_scale.amax(0)), complement.over(complement.log_scale.amin(0))
    return torch.where(divergence.jsd.amax(0) > LN2 / 2, least.argmin(0), most.argmax(0))


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
    divergence = diverge(log_q[final], log_q[:final])
    layer = torch.where(premature < 0, select_premature(divergence), premature)
    image = torch.arange(images, device=logits.device)
    none = layer == final
    scores = log_ratio(log_q[final], log_q[layer, image].masked_fill(none.unsqueeze(-1), 0.0), admitted)
    return Contrasted(scores, layer, divergence.jsd[layer.clamp(max=final - 1), image].masked_fill(none, 0.0))


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
