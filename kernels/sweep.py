"""Third launch of the fused stage: from logits to the premature layer, its JSD, and the sampled code.

    log q_j = z_j - lse_j,  JSD_j of every candidate,  M = argmax_j JSD_j
    F = (z_N - lse_N) - (z_M - lse_M)  where z_N >= max z_N + log alpha,  else -inf
    code = argmax F / T + G             G: Gumbel noise of (image seed, token position, code), see `philox`

Several programs share the codes of an image and leave their parts of the JSD sums; the one that arrives last adds them up,
always in the same order, and goes on alone to draw the code. So the result has the same bits whichever is last.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels import philox
from janus_dola.kernels.launch import SweepLaunch, sweep_launch_of
from janus_dola.kernels.types import Decoding

_LN2 = tl.constexpr(math.log(2.0))
_TILES_AT_ONCE = tl.constexpr(128)
_WORD = tl.constexpr(philox.WORD)
_SMALLEST_U = tl.constexpr(philox.SMALLEST_U)
_LARGEST_U = tl.constexpr(philox.LARGEST_U)


@triton.jit
def _log_sum_exp(tile_max_ptr, tile_sum_ptr, row, tiles):
    # Maximum and log-sum-exp of the rows [N] of logits, from those of their tiles: twice [N].
    maximum = tl.full([row.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([row.shape[0]], tl.float32)
    for start in range(0, tiles, _TILES_AT_ONCE):
        tile = start + tl.arange(0, _TILES_AT_ONCE)[None, :]
        offset = row[:, None] * tiles + tile
        tile_max = tl.load(tile_max_ptr + offset, mask=tile < tiles, other=float("-inf"))
        tile_sum = tl.load(tile_sum_ptr + offset, mask=tile < tiles, other=0.0)
        larger = tl.maximum(maximum, tl.max(tile_max, 1))
        total = total * tl.exp(maximum - larger) + tl.sum(tile_sum * tl.exp(tile_max - larger[:, None]), 1)
        maximum = larger
    return maximum, maximum + tl.log(total)


@triton.jit
def _of_layer(values, layers, layer):
    # The one of `values` [N] that belongs to `layer`.
    return tl.sum(tl.where(layers == layer, values, 0.0), 0)


@triton.jit
def _gumbel(seed, position, quad):
    # Standard Gumbel noise of four codes each: [N] numbers of quads to [4 N]. `philox` says why in this form.
    w0, w1, w2, w3 = tl.philox(seed, quad, position.to(tl.int32), quad * 0, quad * 0)
    word = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    u = tl.minimum(tl.maximum(word.to(tl.float32) * _WORD, _SMALLEST_U), _LARGEST_U)
    # log1p(-u) = -u log(1 - u) / ((1 - u) - 1), which keeps the digits of a small u that 1 - u loses
    rest = 1.0 - u
    log1p = tl.where(rest == 1.0, -u, -u * tl.log(rest) / tl.where(rest == 1.0, 1.0, rest - 1.0))
    return -tl.log(-log1p)


@triton.jit
def _sweep_kernel(
    logits_ptr,  # [L, B, V] fp32, guided; the final layer last
    tile_max_ptr,  # [L, B, TILES] fp32
    tile_sum_ptr,  # [L, B, TILES] fp32
    seeds_ptr,  # [B] int64
    position_ptr,  # [B] int64
    part_ptr,  # [B, C, PARTS] fp32, parts of the JSD sums
    arrived_ptr,  # [B] int32, 0
    code_ptr,  # [B] int64
    layer_ptr,  # [B] int64
    jsd_ptr,  # [B] fp32
    finite_ptr,  # [B] bool
    scores_ptr,  # [B, V] fp32, F
    images,
    V,
    tiles,
    temperature,
    log_alpha,
    NUM_LAYERS: tl.constexpr,  # L
    FIRST: tl.constexpr,  # the candidates are layers FIRST .. FIRST + C - 1
    CANDIDATES: tl.constexpr,  # C; 0: no contrast
    PARTS: tl.constexpr,  # programs an image
    BLOCK_V: tl.constexpr,
    GREEDY: tl.constexpr,
    WRITE_SCORES: tl.constexpr,
    LAYERS_PADDED: tl.constexpr,  # to powers of two
    CANDIDATES_PADDED: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
):
    image, part = tl.program_id(0), tl.program_id(1)
    FINAL: tl.constexpr = NUM_LAYERS - 1
    layers = tl.minimum(tl.arange(0, LAYERS_PADDED), FINAL + 1)  # L stands for padding
    maxima, lses = _log_sum_exp(tile_max_ptr, tile_sum_ptr, tl.minimum(layers, FINAL) * images + image, tiles)
    final_lse = _of_layer(lses, layers, FINAL)
    final_logits = logits_ptr + (FINAL * images + image).to(tl.int64) * V

    candidate = tl.arange(0, CANDIDATES_PADDED)
    part_offset = (image * CANDIDATES + candidate) * PARTS
    is_last = True
    if CANDIDATES > 0:
        # Over this program's codes: sum p log(p / m) + q log(q / m), formed as in `reference.jensen_shannon`
        row = (FIRST + tl.minimum(candidate, CANDIDATES - 1)) * images + image
        _, lse = _log_sum_exp(tile_max_ptr, tile_sum_ptr, row, tiles)
        candidate_logits = logits_ptr + row.to(tl.int64)[:, None] * V
        divergence = tl.zeros([CANDIDATES_PADDED], tl.float32)
        for start in range(part * BLOCK_V, V, PARTS * BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)[None, :]
            inside = (candidate < CANDIDATES)[:, None] & (v < V)
            log_p = tl.load(final_logits + v, mask=v < V, other=0.0) - final_lse
            log_q = tl.load(candidate_logits + v, mask=inside, other=0.0) - lse[:, None]
            p, q, d = tl.exp(log_p), tl.exp(log_q), log_q - log_p
            rest = _LN2 - tl.log(1.0 + tl.exp(-tl.abs(d)))
            terms = p * (rest - tl.maximum(d, 0.0)) + q * (rest + tl.minimum(d, 0.0))
            divergence += tl.sum(tl.where(inside, terms, 0.0), 1)
        tl.store(part_ptr + part_offset + part, divergence, mask=candidate < CANDIDATES)
        tl.debug_barrier()  # all threads have stored before one of them says so
        is_last = tl.atomic_add(arrived_ptr + image, 1, sem="acq_rel", scope="gpu") == PARTS - 1

    if is_last:
        # M = argmax JSD, the lowest layer on a tie
        layer = FINAL
        jsd = 0.0
        if CANDIDATES > 0:
            every = tl.arange(0, PARTS_PADDED)[None, :]
            inside = (candidate < CANDIDATES)[:, None] & (every < PARTS)
            # .cg: past the first-level cache, which does not see what other programs store
            parts = tl.load(part_ptr + part_offset[:, None] + every, mask=inside, other=0.0, cache_modifier=".cg")
            jsds = tl.minimum(tl.maximum(0.5 * tl.sum(parts, 1), 0.0), _LN2)
            jsd = tl.max(tl.where(candidate < CANDIDATES, jsds, 0.0), 0)
            layer = FIRST + tl.min(tl.where(jsds == jsd, candidate, CANDIDATES - 1), 0)
        tl.store(layer_ptr + image, layer)
        tl.store(jsd_ptr + image, jsd)
        # A sum of exponentials is NaN where a logit was not finite.
        finite = tl.min(((tl.abs(lses) < float("inf")) | (layers > FINAL)).to(tl.int32), 0)
        tl.store(finite_ptr + image, finite == 1)

        # F on the plausible codes, and the maximum of F / T + G
        threshold = _of_layer(maxima, layers, FINAL) + log_alpha
        premature_lse = _of_layer(lses, layers, layer)
        premature_logits = logits_ptr + (layer * images + image).to(tl.int64) * V
        seed, position = tl.load(seeds_ptr + image), tl.load(position_ptr + image)
        best = tl.full([BLOCK_V], float("-inf"), tl.float32)
        best_code = tl.zeros([BLOCK_V], tl.int32)
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            z = tl.load(final_logits + v, mask=v < V, other=float("-inf"))
            plausible = (z >= threshold) & (v < V)
            if WRITE_SCORES or tl.max(plausible.to(tl.int32), 0) == 1:
                score = z - final_lse
                if CANDIDATES > 0:
                    score -= tl.load(premature_logits + v, mask=plausible, other=0.0) - premature_lse
                score = tl.where(plausible, score, float("-inf"))
                if WRITE_SCORES:
                    tl.store(scores_ptr + image.to(tl.int64) * V + v, score, mask=v < V)
                if not GREEDY:
                    quad = start // 4 + tl.arange(0, BLOCK_V // 4)
                    score = score / temperature + _gumbel(seed, position, quad)
                better = score > best
                best = tl.where(better, score, best)
                best_code = tl.where(better, v, best_code)
        # the lowest code on a tie
        code = tl.min(tl.where(best == tl.max(best, 0), best_code, V), 0)
        tl.store(code_ptr + image, tl.minimum(code, V - 1).to(tl.int64))


@dataclass(frozen=True)
class Drawn:
    """What the sweep leaves for each image."""

    code: Tensor  # [B] int64
    layer: Tensor  # [B] int64, index into the stack
    jsd: Tensor  # [B] float32, nats; 0 without contrast
    finite: Tensor  # [B] bool
    scores: Tensor  # [B, V] float32, F; [0] where they were not asked for


def sweep(
    logits: Tensor,
    tile_max: Tensor,
    tile_sum: Tensor,
    arrived: Tensor,
    decoding: Decoding,
    seeds: Tensor,
    position: Tensor,
    with_scores: bool,
    launch: SweepLaunch | None = None,
) -> Drawn:
    """The premature layer of each image, its JSD, and a code drawn from softmax(F / T).

    Args:
        logits, tile_max, tile_sum: as `codebook` returns them.
        arrived: [B] int32 zeros.
        decoding: temperature, plausibility and the choice of layer; guidance is in the logits already.
        seeds: [B] int64, one per image.
        position: [B] int64, of the token in its image.
        with_scores: whether F is wanted.
        launch: block shapes; None takes those of the launch table.
    """
    layers, images, codes = logits.shape
    device, final = logits.device, layers - 1
    if decoding.premature is None:
        first, candidates = 0, final
    else:
        first, candidates = decoding.premature, int(decoding.premature < final)
    launch = launch or sweep_launch_of(logits)
    blocks = triton.cdiv(codes, launch.block_codes)
    parts = min(blocks, launch.max_parts) if candidates else 1
    found = Drawn(
        code=torch.empty(images, dtype=torch.int64, device=device),
        layer=torch.empty(images, dtype=torch.int64, device=device),
        jsd=torch.empty(images, dtype=torch.float32, device=device),
        finite=torch.empty(images, dtype=torch.bool, device=device),
        scores=torch.empty((images, codes) if with_scores else 0, dtype=torch.float32, device=device),
    )
    part_sums = torch.empty(images, candidates, parts, dtype=torch.float32, device=device)
    _sweep_kernel[(images, parts)](
        logits, tile_max, tile_sum, seeds, position, part_sums, arrived, found.code, found.layer, found.jsd, found.finite,
        found.scores, images, codes, tile_max.shape[-1], decoding.temperature,
        math.log(decoding.alpha) if decoding.alpha > 0 else -math.inf,
        NUM_LAYERS=layers, FIRST=first, CANDIDATES=candidates, PARTS=parts, BLOCK_V=launch.block_codes,
        GREEDY=decoding.temperature == 0, WRITE_SCORES=with_scores, LAYERS_PADDED=triton.next_power_of_2(layers),
        CANDIDATES_PADDED=triton.next_power_of_2(max(1, candidates)), PARTS_PADDED=triton.next_power_of_2(parts),
        num_warps=launch.num_warps, enable_fp_fusion=True,
    )  # fmt: skip
    return found
