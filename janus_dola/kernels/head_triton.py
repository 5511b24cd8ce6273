"""The triton backend: the whole head stage in a few launches, each weight of the head read once.

    normalise  h -> LN_out                                x      [L, R, D]
    project    x -> Linear, GELU, guidance                y      [L, B, E]
    codebook   y -> last Linear                           logits [L, B, V] float32, with partial softmax sums
    sweep      logits -> JSD, M, F -> Gumbel-max          code, premature layer, JSD [B]
    truncate   F -> top-k, top-p                          F [B, V], which goes through the sweep again; only if asked for

Without a projection guidance follows the norm at once. The sweep is DoLa's; other methods run in torch on the logits
(`contrast.METHODS`), and their F goes through `truncate` and a second sweep as truncated scores do.

It is one custom operator of torch, so that it runs eagerly, under torch.compile without a graph break and in a CUDA graph.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from janus_dola.kernels.contrast import METHODS
from janus_dola.kernels.gpu.codebook import codebook
from janus_dola.kernels.gpu.launch import INTERPRETED, unsupported
from janus_dola.kernels.gpu.normalise import normalise
from janus_dola.kernels.gpu.project import counters, project
from janus_dola.kernels.gpu.sweep import as_single_layer_logits, scores, sweep
from janus_dola.kernels.gpu.truncate import truncate
from janus_dola.kernels.types import Head, SampledCodes, SamplingTensors, Scores

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_SWEPT = "dola"  # the method that the sweep computes


@torch.library.custom_op("janus_dola::sample_codes", mutates_args=())
def _sample_codes(
    hidden_states: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    code_weight: Tensor,
    code_bias: Tensor | None,
    proj_weight: Tensor | None,
    proj_bias: Tensor | None,
    method: str,
    names: str,  # separated by blanks
    tensors: Sequence[Tensor],  # as `SamplingTensors.flat` names them
    seeds: Tensor,
    position: Tensor,
    with_scores: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = Head(norm_weight, norm_eps, code_weight, code_bias, proj_weight, proj_bias)
    sampling = SamplingTensors.from_flat(method, dict(zip(names.split(), tensors, strict=True)))
    # Triton launches on the current device, which need not be where the tensors are.
    with torch.cuda.device_of(hidden_states):
        tiles = 0 if proj_weight is None else counters(hidden_states, head)
        arrived = torch.empty(tiles + len(seeds), dtype=torch.int32, device=seeds.device)  # programs that are done
        at_sweep = arrived[tiles:]
        if proj_weight is None:
            x = normalise(hidden_states, head, sampling.cfg_weight, arrived)
        else:
            x = project(normalise(hidden_states, head, None, arrived), head, sampling.cfg_weight, arrived)
        logits, tile_max, tile_sum = codebook(x, head)
        drawn, out = None, logits.new_empty(0)
        if method == _SWEPT:
            drawn = sweep(logits, tile_max, tile_sum, sampling, seeds, position, at_sweep)
            layer, jsd, finite = drawn.layer, drawn.jsd, drawn.finite
            if with_scores or sampling.truncates:
                out = scores(logits, tile_max, tile_sum, layer, sampling)
        else:
            out, layer, jsd = METHODS[method](logits, **sampling.contrast)
            finite = tile_sum.sum((0, 2)).isfinite()
        if sampling.truncates:
            truncate(out, sampling)
        if drawn is None or sampling.truncates:
            no_limit, one = torch.full_like(sampling.temperature, -math.inf), torch.ones_like(sampling.temperature)
            everything = {"log_alpha": no_limit, "premature": torch.zeros_like(seeds)}
            everything |= {"final_weight": one, "premature_weight": one}
            drawing = replace(sampling, contrast=everything)
            drawn = sweep(*as_single_layer_logits(out), drawing, seeds, position, at_sweep)
    return drawn.code, layer, jsd, finite, drawn.log_prob, out if with_scores else logits.new_empty(0)


@_sample_codes.register_fake
def _(
    hidden_states, norm_weight, norm_eps, code_weight, code_bias, proj_weight, proj_bias, method, names, tensors, seeds,
    position, with_scores,
):  # fmt: skip
    images = seeds.shape[0]
    return (
        hidden_states.new_empty(images, dtype=torch.int64),
        hidden_states.new_empty(images, dtype=torch.int64),
        hidden_states.new_empty(images, dtype=torch.float32),
        hidden_states.new_empty(images, dtype=torch.bool),
        hidden_states.new_empty(images, dtype=torch.float32),
        hidden_states.new_empty((images, code_weight.shape[0]) if with_scores else 0, dtype=torch.float32),
    )


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Says what keeps the kernels from running on such tensors, in words that follow "needs"; None if nothing does."""
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
    tensors = sampling.flat()
    return _sample_codes(
        hidden_states.contiguous(), head.norm_weight, head.norm_eps, head.code_weight, head.code_bias, head.proj_weight,
        head.proj_bias, sampling.method, " ".join(tensors), list(tensors.values()), seeds, position, with_scores,
    )  # fmt: skip


def head_scores(hidden_states: Tensor, head: Head, sampling: SamplingTensors) -> Scores:
    """Computes the contrasted scores. See `janus_dola.kernels.head` for the arguments."""
    nothing = torch.zeros_like(sampling.temperature, dtype=torch.int64)  # the code that it draws is not used
    _, layer, jsd, finite, _, scores = _run(hidden_states, head, sampling, nothing, nothing, with_scores=True)
    return Scores(scores, layer, jsd, finite)


def sample_codes(
    hidden_states: Tensor, head: Head, sampling: SamplingTensors, seeds: Tensor, position: int | Tensor
) -> SampledCodes:
    """Draws the next codes. See `janus_dola.kernels.head` for the arguments."""
    if not isinstance(position, Tensor):
        position = torch.full_like(seeds, position)
    return SampledCodes(*_run(hidden_states, head, sampling, seeds, position, with_scores=False)[:5])
