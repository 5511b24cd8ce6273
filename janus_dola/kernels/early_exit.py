"""The front of the early-exit stage: hidden states of all layers in; code, premature layer and JSD per image out.

It picks a backend; each computes the same:

- `reference`: layer by layer, as the formulas are written.
- `torch`: all layers in one pass over the head's weights, on any device.
- `triton`: a few fused launches, on a GPU.
"""

import torch
from torch import Tensor

from janus_dola.kernels import batched, reference
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.kernels.types import Decoding, Decodings, EarlyExit, Head, Scores

try:
    from janus_dola.kernels import fused
except ModuleNotFoundError as missing:  # Triton exists for Linux only
    if missing.name != "triton":
        raise
    fused = None  # type: ignore[assignment]

_SCORES = {"reference": reference.early_exit_scores, "torch": batched.early_exit_scores}
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
        runs = fused is not None and device.type == "cuda" and fused.why_not(device, dtype) is None
        return "triton" if runs else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {['auto', *BACKENDS]}, got {backend!r}")
    if backend == "triton":
        why_not = "Triton, which is not installed" if fused is None else fused.why_not(device, dtype)
        if why_not is not None:
            raise ValueError(f"backend 'triton' needs {why_not}; 'auto' takes the fastest that runs here")
    return backend


def early_exit_scores(
    hidden_states: Tensor, head: Head, decoding: Decoding | Decodings, backend: str = "auto"
) -> Scores:
    """The contrasted distribution of each image, without drawing from it.

    Args:
        hidden_states: [L, R, D], the last position's output of each candidate block in ascending order, then that of the
            final block, all before the final norm. Rows: B conditional, then B unconditional in the same order; without
            guidance, B.
        head: final norm and image head, of the same dtype and device.
        decoding: guidance, temperature, plausibility and the choice of layer, for all images or of each.
        backend: "auto", "reference", "torch" or "triton".
    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    decodings = _checked(hidden_states, head, decoding)
    backend = resolve_backend(backend, hidden_states.device, hidden_states.dtype)
    if backend == "triton":
        return fused.early_exit_scores(hidden_states, head, decodings)
    return _SCORES[backend](hidden_states, head, decodings)


def early_exit(
    hidden_states: Tensor,
    head: Head,
    decoding: Decoding | Decodings,
    seeds: Tensor,
    position: int | Tensor,
    backend: str = "auto",
) -> EarlyExit:
    """The next code of each image, drawn with counter-based noise.

    Args:
        hidden_states, head, decoding, backend: as for `early_exit_scores`.
        seeds: [B] int64, one per image.
        position: of the token in its image, 0 .. T-1: [B] int64, or an int for all.
    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    decodings = _checked(hidden_states, head, decoding)
    images, device = len(decodings.temperature), hidden_states.device
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
        return fused.early_exit(hidden_states, head, decodings, seeds, position)
    found = _SCORES[backend](hidden_states, head, decodings)
    code = gumbel_max(found.scores, decodings.temperature, seeds, position)
    return EarlyExit(code, found.layer, found.jsd, found.finite)


def _checked(hidden_states: Tensor, head: Head, decoding: Decoding | Decodings) -> Decodings:
    """The settings of each image. What `Decodings` hold is on the device, and nothing waits for it here."""
    shape = list(hidden_states.shape)
    guided = decoding.cfg_weight is not None
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
    if isinstance(decoding, Decodings):
        if len(decoding.temperature) != images:
            raise ValueError(f"decoding must be of {images} images, got {len(decoding.temperature)}")
        return decoding
    if decoding.premature is None and last == 0:
        raise ValueError("hidden_states must hold at least one candidate layer beside the final one, got 1 layer")
    if decoding.premature is not None and not 0 <= decoding.premature <= last:
        raise ValueError(f"premature must lie in 0 .. {last} for {shape[0]} layers, got {decoding.premature}")
    return decoding.repeated(images, hidden_states)
