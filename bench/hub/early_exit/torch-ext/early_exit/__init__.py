"""From the hidden states of several layers to the next code: final norm, head, guidance, DoLa or SLED, noise of a seed."""

from .contrast import jensen_shannon
from .head import head_scores, sample_codes
from .philox import gumbel_noise
from .sampling import gumbel_max
from .types import Head, SampledCodes, SamplingParams, SamplingTensors, Scores

__all__ = [
    "Head",
    "SampledCodes",
    "SamplingParams",
    "SamplingTensors",
    "Scores",
    "gumbel_max",
    "gumbel_noise",
    "head_scores",
    "jensen_shannon",
    "sample_codes",
]
