"""The triton backend: the whole head stage in a few launches, each weight of the head read once.

    normalise  h -> LN_out                                x      [L, R, D]
    project    x -> Linear; then GELU, guidance           y      [L, B, E], two launches
    codebook   y -> last Linear                           logits [L, B, V] float32, with partial softmax sums
    sweep      logits -> JSD, M, F -> Gumbel-max          code, premature layer, JSD [B]
    truncate   F -> top-k, top-p                          F [B, V], which goes through the sweep again; where asked for

Without a projection guidance follows the norm at once.

It is one custom operator of torch, so that it runs eagerly, under torch.compile without a graph break and in a CUDA graph.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from janus_dola.kernels.gpu.codebook import codebook
from janus_dola.kernels.gpu.launch import INTERPRETED, unsupported
from janus_dola.kernels.gpu.normalise import normalise
from janus_dola.kernels.gpu.project import project
from janus_dola.kernels.gpu.sweep import scores, sweep
from janus_dola.kernels.gpu.truncate import race_of, truncate
from janus_dola.kernels.types import Head, SampledCodes, SamplingTensors, Scores

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@torch.library.custom_op("janus_dola::sample_codes", mutates_args=())
def _sample_codes(
    hidden_states: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    code_weight: Tensor,
    code_bias: Tensor | None,
    proj_weight: Tensor | None,
    proj_bias: Tensor | None,
    cfg_weight: Tensor | None,
    temperature: Tensor,
    log_alpha: Tensor,
    premature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    seeds: Tensor,
    position: Tensor,
    with_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = Head(norm_weight, norm_eps, code_weight, code_bias, proj_weight, proj_bias)
    sampling = SamplingTensors(cfg_weight, temperature, log_alpha, premature, top_k, top_p)
    images, truncates = len(temperature), top_k is not None
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(hidden_states):
        arrived = torch.empty(images, dtype=torch.int32, device=hidden_states.device)
        if proj_weight is None:
            x = normalise(hidden_states, head, cfg_weight, arrived)
        else:
            x = project(normalise(hidden_states, head, None, arrived), head, cfg_weight)
        logits = codebook(x, head)
        drawn = sweep(*logits, arrived, sampling, seeds, position)
        code, wanted = drawn.code, logits[0].new_empty(0)
        if with_scores or truncates:
            wanted = scores(*logits, drawn.layer, sampling)
        if truncates:
            truncate(wanted, sampling)
            rest = replace(sampling, log_alpha=torch.full_like(log_alpha, -math.inf))
            code = sweep(*race_of(wanted), arrived.zero_(), rest, seeds, position).code
    return code, drawn.layer, drawn.jsd, drawn.finite, wanted if with_scores else logits[0].new_empty(0)


@_sample_codes.register_fake
def _(
    hidden_states, norm_weight, norm_eps, code_weight, code_bias, proj_weight, proj_bias, cfg_weight, temperature,
    log_alpha, premature, top_k, top_p, seeds, position, with_scores,
):  # fmt: skip
    images = temperature.shape[0]
    return (
        hidden_states.new_empty(images, dtype=torch.int64),
        hidden_states.new_empty(images, dtype=torch.int64),
        hidden_states.new_empty(images, dtype=torch.float32),
        hidden_states.new_empty(images, dtype=torch.bool),
        hidden_states.new_empty((images, code_weight.shape[0]) if with_scores else 0, dtype=torch.float32),
    )


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the kernels from running on such tensors, in words that follow "needs"; None if nothing does."""
    if dtype not in DTYPES:
        return f"float16, bfloat16 or float32, got {dtype}"
    if device.type == "cpu" and INTERPRETED:
        return None
    if device.type != "cuda" or INTERPRETED:
        return f"a GPU, got tensors on {device.type}"
    return unsupported(device)


def _run(
    hidden_states: Tensor, head: Head, sampling: SamplingTensors, seeds: Tensor, position: Tensor, with_scores: bool
) -> tuple[Tensor, ...]:
    return _sample_codes(
        hidden_states.contiguous(), head.norm_weight, head.norm_eps, head.code_weight, head.code_bias, head.proj_weight,
        head.proj_bias, sampling.cfg_weight, sampling.temperature, sampling.log_alpha, sampling.premature,
        sampling.top_k, sampling.top_p, seeds, position, with_scores,
    )  # fmt: skip


def head_scores(hidden_states: Tensor, head: Head, sampling: SamplingTensors) -> Scores:
    """The contrasted distributions. See `janus_dola.kernels.head` for the arguments."""
    nothing = torch.zeros_like(sampling.premature)  # the code that it draws is not used
    _, layer, jsd, finite, scores = _run(hidden_states, head, sampling, nothing, nothing, with_scores=True)
    return Scores(scores, layer, jsd, finite)


def sample_codes(
    hidden_states: Tensor, head: Head, sampling: SamplingTensors, seeds: Tensor, position: int | Tensor
) -> SampledCodes:
    """The next codes. See `janus_dola.kernels.head` for the arguments."""
    if not isinstance(position, Tensor):
        position = torch.full_like(seeds, position)
    return SampledCodes(*_run(hidden_states, head, sampling, seeds, position, with_scores=False)[:4])
