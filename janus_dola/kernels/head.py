"""The head stage, from hidden states of all layers to a code, a layer and a divergence per image, by one of three backends.

Each computes the same:

- `reference`: layer by layer, as the formulas are written.
- `torch`: all layers in one pass over the head's weights, on any device.
- `triton`: a few fused launches, on a GPU.
"""

import torch
from torch import Tensor

from janus_dola.kernels import head_torch, reference
from janus_dola.kernels.sampling import gumbel_max, log_probabilities
from janus_dola.kernels.types import Head, SampledCodes, SamplingParams, SamplingTensors, Scores

try:
    from janus_dola.kernels import head_triton
except ModuleNotFoundError as missing:  # Triton exists for Linux only
    if missing.name != "triton":
        raise
    head_triton = None  # type: ignore[assignment]

_SCORES = {"reference": reference.head_scores, "torch": head_torch.head_scores}
BACKENDS = (*_SCORES, "triton")


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Resolves a backend's name: "auto" is triton where it can run, and torch elsewhere.

    Args:
        backend: "auto", "reference", "torch" or "triton".
        device, dtype: where the hidden states are, and in which precision.
    Raises:
        ValueError: there is no such backend, or triton cannot run on this device or dtype.
    """
    if backend == "auto":
        runs = head_triton is not None and device.type == "cuda" and head_triton.why_not(device, dtype) is None
        return "triton" if runs else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {['auto', *BACKENDS]}, got {backend!r}")
    if backend == "triton":
        why_not = "Triton, which is not installed" if head_triton is None else head_triton.why_not(device, dtype)
        if why_not is not None:
            raise ValueError(f"backend 'triton' needs {why_not}; 'auto' takes the fastest that runs here")
    return backend


def head_scores(
    hidden_states: Tensor, head: Head, params: SamplingParams | SamplingTensors, backend: str = "auto"
) -> Scores:
    """Computes the contrasted scores of each image, without drawing a code.

    Args:
        hidden_states: [L, R, D], the last position's output of each block that is read, ascending, before the final norm.
            Rows: B conditional, then B unconditional in the same order; without guidance, B.
        head: final norm and image head, in the same dtype and on the same device.
        params: guidance, contrast, temperature and truncation, for all images or for each.
        backend: "auto", "reference", "torch" or "triton".
    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    sampling = _checked(hidden_states, head, params)
    backend = resolve_backend(backend, hidden_states.device, hidden_states.dtype)
    if backend == "triton":
        return head_triton.head_scores(hidden_states, head, sampling)
    return _SCORES[backend](hidden_states, head, sampling)


def sample_codes(
    hidden_states: Tensor,
    head: Head,
    params: SamplingParams | SamplingTensors,
    seeds: Tensor,
    position: int | Tensor,
    backend: str = "auto",
) -> SampledCodes:
    """Draws the next code of each image with counter-based noise.

    Args:
        hidden_states, head, params, backend: as for `head_scores`.
        seeds: [B] int64, one per image.
        position: where the token stands in its image, 0 .. T-1: [B] int64, or an int for all.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    sampling = _checked(hidden_states, head, params)
    images, device = len(sampling.temperature), hidden_states.device
    for name, numbers in (("seeds", seeds), ("position", position)):
        if isinstance(numbers, int):
            continue
        if tuple(numbers.shape) != (images,) or numbers.dtype != torch.int64 or numbers.device != device:
            raise ValueError(
                f"{name} must be int64 of shape [{images}] on {device}, "
                f"got {numbers.dtype} of shape {list(numbers.shape)} on {numbers.device}"
            )
    backend = resolve_backend(backend, device, hidden_states.dtype)
    if backend == "triton":
        return head_triton.sample_codes(hidden_states, head, sampling, seeds, position)
    scores = _SCORES[backend](hidden_states, head, sampling)
    code = gumbel_max(scores.scores, sampling.temperature, seeds, position)
    log_prob = log_probabilities(scores.scores, sampling.temperature, code)
    return SampledCodes(code, scores.layer, scores.jsd, scores.finite, log_prob)


def _checked(hidden_states: Tensor, head: Head, params: SamplingParams | SamplingTensors) -> SamplingTensors:
    """Returns the settings of each image. `SamplingTensors` are on the device, and nothing waits for their values here."""
    shape = list(hidden_states.shape)
    guided = params.cfg_weight is not None
    rows = "an even number of rows" if guided else "rows"
    if hidden_states.ndim != 3 or 0 in shape or (guided and shape[1] % 2) or shape[2] != head.hidden_size:
        raise ValueError(f"hidden_states must be [layers >= 1, {rows}, {head.hidden_size}], got shape {shape}")
    if not hidden_states.is_floating_point() or hidden_states.dtype != head.norm_weight.dtype:
        raise ValueError(
            f"hidden_states must have the head's dtype, {head.norm_weight.dtype}, got {hidden_states.dtype}"
        )
    if hidden_states.device != head.norm_weight.device:
        raise ValueError(
            f"hidden_states must be on the head's device, {head.norm_weight.device}, got {hidden_states.device}"
        )
    images = shape[1] // 2 if guided else shape[1]
    if isinstance(params, SamplingTensors):
        if len(params.temperature) != images:
            raise ValueError(f"sampling must hold {images} images, got {len(params.temperature)}")
        return params
    return SamplingTensors.repeat(params, images, hidden_states)
