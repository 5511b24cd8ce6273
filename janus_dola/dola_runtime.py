"""The name under which the original integration has `janus_dola.original.dola_runtime`."""

from janus_dola.original.dola_runtime import (
    compute_logprobs_from_hidden,
    contrast_with_apc_from_logprobs,
    jsd_from_logprobs,
    sanitize_candidate_layers,
    select_layer_by_jsd,
)

__all__ = [
    "compute_logprobs_from_hidden",
    "contrast_with_apc_from_logprobs",
    "jsd_from_logprobs",
    "sanitize_candidate_layers",
    "select_layer_by_jsd",
]
