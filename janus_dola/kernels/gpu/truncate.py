"""Top-k and top-p of the fused stage: `reference.truncate` sorts, this bisects, in place.

The bits of a float32, read as an integer and mirrored where it is negative, are ordered as the numbers are. So the least
score that stays is found in 32 halvings of the integers, each of which counts the codes above the middle, or adds up what
they hold; nothing is sorted. One program does one image: truncation is rare, and the row stays in the cache.
"""

import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.types import SamplingTensors

_LOWEST, _HIGHEST = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)


@triton.jit
def _load(scores_ptr, start, V, BLOCK_V: tl.constexpr):
    # Scores of some codes, and integers that are ordered as the scores are.
    v = start + tl.arange(0, BLOCK_V)
    score = tl.load(scores_ptr + v, mask=v < V, other=float("-inf"))
    score = tl.where(score == 0, 0.0, score)  # zero has one sign
    bits = score.to(tl.int32, bitcast=True)
    return score, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _truncate_kernel(
    scores_ptr,  # [B, V] fp32, F; -inf where a code is left out
    temperature_ptr,  # [B] fp32
    top_k_ptr,  # [B] int64
    top_p_ptr,  # [B] fp32
    V,
    BLOCK_V: tl.constexpr,
):
    image = tl.program_id(0)
    scores_ptr += image.to(tl.int64) * V
    top_k, top_p = tl.load(top_k_ptr + image), tl.load(top_p_ptr + image)
    if (top_k > 0) | (top_p < 1):
        # the largest integer that k codes reach, or that of -inf
        low, high = tl.full([], _LOWEST, tl.int64), tl.full([], _HIGHEST, tl.int64)
        kept = tl.where(top_k > 0, tl.minimum(top_k, V), V)
        while low < high:
            middle = (low + high + 1) >> 1
            count = tl.zeros([], tl.int64)
            for start in range(0, V, BLOCK_V):
                _, key = _load(scores_ptr, start, V, BLOCK_V)
                inside = start + tl.arange(0, BLOCK_V) < V
                count += tl.sum(((key >= middle) & inside).to(tl.int64), 0)
            low = tl.where(count >= kept, middle, low)
            high = tl.where(count >= kept, high, middle - 1)
        least = low
        if top_p < 1:
            temperature = tl.load(temperature_ptr + image)
            scale = tl.where(temperature > 0, temperature, 1.0)
            top = tl.full([], float("-inf"), tl.float32)
            for start in range(0, V, BLOCK_V):
                score, _ = _load(scores_ptr, start, V, BLOCK_V)
                top = tl.maximum(top, tl.max(score, 0))
            total = tl.zeros([], tl.float32)
            for start in range(0, V, BLOCK_V):
                score, key = _load(scores_ptr, start, V, BLOCK_V)
                total += tl.sum(tl.where(key >= least, tl.exp((score - top) / scale), 0.0), 0)
            # the smallest integer above which the codes hold less than p
            high = tl.full([], _HIGHEST, tl.int64)
            while low < high:
                middle = (low + high) >> 1
                above = tl.zeros([], tl.float32)
                for start in range(0, V, BLOCK_V):
                    score, key = _load(scores_ptr, start, V, BLOCK_V)
                    above += tl.sum(tl.where((key > middle) & (key >= least), tl.exp((score - top) / scale), 0.0), 0)
                less = (above == 0) | (above < top_p * total)  # the product may be 0
                high = tl.where(less, middle, high)
                low = tl.where(less, low, middle + 1)
            least = low
        for start in range(0, V, BLOCK_V):
            score, key = _load(scores_ptr, start, V, BLOCK_V)
            v = start + tl.arange(0, BLOCK_V)
            tl.store(scores_ptr + v, tl.where(key >= least, score, float("-inf")), mask=v < V)


def launch_options(codes: int) -> dict[str, int]:
    """Returns how many codes a program looks at in one go, and its warps."""
    return {"BLOCK_V": min(4096, triton.next_power_of_2(codes)), "num_warps": 16}


def truncate(scores: Tensor, sampling: SamplingTensors) -> None:
    """Sets F, [B, V] float32, to -inf in place for codes that each image's top-k and top-p leave out."""
    images, codes = scores.shape
    _truncate_kernel[(images,)](
        scores, sampling.temperature, sampling.top_k, sampling.top_p, codes, **launch_options(codes)
    )
