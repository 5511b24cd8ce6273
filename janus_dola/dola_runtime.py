"""The steps of DoLa as functions on single distributions, for readers and for other decode loops.

These are the reference implementation under the names that the original integration has; the engine runs the same formulas
for all layers and images at once. Natural logarithms; float32 inside (float64 for float64 input). Like torch's own they
have gradients, and follow the caller's contexts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from janus_dola.contrasts import check_alpha, sanitize_candidate_layers
from janus_dola.kernels.contrast import jensen_shannon, log_ratio, plausible, select_premature
from janus_dola.kernels.params import log_of
from janus_dola.kernels.reference import upcast

__all__ = [
    "compute_logprobs_from_hidden",
    "contrast_with_apc_from_logprobs",
    "jsd_from_logprobs",
    "sanitize_candidate_layers",
    "select_layer_by_jsd",
]


def compute_logprobs_from_hidden(h: Tensor, ln_out: nn.Module, phi: nn.Module) -> Tensor:
    """Computes LN_out -> head -> log_softmax: [..., D] to [..., V] log-probabilities, float32 or float64.

    Args:
        h: the output of a block *before* the final norm. (`outputs.hidden_states[-1]` of Hugging Face has been through it.)
        ln_out: the model's final RMSNorm.
        phi: its output head.
    """
    return torch.log_softmax(upcast(phi(ln_out(h))), dim=-1)


def jsd_from_logprobs(P: Tensor, Q: Tensor) -> Tensor:
    """Returns the Jensen-Shannon divergence between log-probabilities [..., V]: [...], in [0, ln 2] nats."""
    return jensen_shannon(upcast(P), upcast(Q))


def select_layer_by_jsd(qN: Tensor, candidates: Mapping[int, Tensor]) -> int | Tensor:
    """Returns the candidate layer that diverges most from the final one, the lowest on an exact tie.

    Args:
        qN: [..., V] log-probabilities at the final layer.
        candidates: log-probabilities at each candidate layer, by layer index; a ValueError if there is none.
    Returns:
        a layer for each distribution: [...] int64, or an int if `qN` is a single distribution.
    """
    if not candidates:
        raise ValueError("candidates must hold at least one layer, got none")
    layers = sorted(candidates)
    stack = torch.stack([upcast(candidates[layer]) for layer in layers])
    chosen = torch.tensor(layers, device=qN.device)[select_premature(upcast(qN), stack)]
    return int(chosen) if chosen.ndim == 0 else chosen


def contrast_with_apc_from_logprobs(qN: Tensor, qM: Tensor, alpha: float) -> Tensor:
    """Returns p_hat = softmax(log q_N - log q_M) over the codes with q_N >= alpha max q_N: [..., V] probabilities.

    Args:
        qN, qM: [..., V] log-probabilities at the final and at the premature layer.
        alpha: in [0, 1]; otherwise there is a ValueError.
    """
    final, premature = upcast(qN), upcast(qM)
    return torch.softmax(log_ratio(final, premature, plausible(final, log_of(check_alpha(alpha)))), dim=-1)
