"""The front of the head stage: hidden states of all layers in; code, premature layer and JSD per image out.

It picks a backend; each computes the same:

- `reference`: layer by layer, as the formulas are written.
- `torch`: all layers in one pass over the head's weights, on any device.
- `triton`: a few fused launches, on a GPU.
"""

import torch
from torch import Tensor

from janus_dola.kernels import head_torch, reference
from janus_dola.kernels.sampling import gumbel_max
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
    """The backend that a name stands for: "auto" is triton where it can run, and torch elsewhere.

    Args:
        backend: "auto", "reference", "torch" or "triton".
        device, dtype: of the hidden states.
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
    """The contrasted distribution of each image, without drawing from it.

    Args:
        hidden_states: [L, R, D], the last position's output of each candidate block in ascending order, then that of the
            final block, all before the final norm. Rows: B conditional, then B unconditional in the same order; without
            guidance, B.
        head: final norm and image head, of the same dtype and device.
        params: guidance, temperature, plausibility and the choice of layer, for all images or of each.
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
    """The next code of each image, drawn with counter-based noise.

    Args:
        hidden_states, head, params, backend: as for `head_scores`.
        seeds: [B] int64, one per image.
        position: of the token in its image, 0 .. T-1: [B] int64, or an int for all.
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
    found = _SCORES[backend](hidden_states, head, sampling)
    code = gumbel_max(found.scores, sampling.temperature, seeds, position)
    return SampledCodes(code, found.layer, found.jsd, found.finite)


def _checked(hidden_states: Tensor, head: Head, params: SamplingParams | SamplingTensors) -> SamplingTensors:
    """The settings of each image. What `SamplingTensors` hold is on the device, and nothing waits for it here."""
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
    last, images = shape[0] - 1, shape[1] // 2 if guided else shape[1]
    if isinstance(params, SamplingTensors):
        if len(params.temperature) != images:
            raise ValueError(f"sampling must be of {images} images, got {len(params.temperature)}")
        return params
    if params.premature is None and last == 0:
        raise ValueError("hidden_states must hold at least one candidate layer beside the final one, got 1 layer")
    if params.premature is not None and not 0 <= params.premature <= last:
        raise ValueError(f"premature must lie in 0 .. {last} for {shape[0]} layers, got {params.premature}")
    return SamplingTensors.repeat(params, images, hidden_states)
