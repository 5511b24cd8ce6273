"""Last launch of the fused stage: from logits to DoLa's premature layer, its JSD, and the sampled code.

    log q_j = z_j - lse_j,  JSD_j of every candidate,  M = argmax_j JSD_j
    F = w_N (z_N - lse_N) - w_M (z_M - lse_M)  where z_N >= max z_N + log alpha,  else -inf
    code = argmax (F - max F) / T + G   G: Gumbel noise for (image seed, token position, code), see `philox`
    log p = (F - max F) / T - log sum exp (F - max F) / T   of this code; 0 at T = 0

Several programs share the codes of an image. The noise of a code is the same for every candidate, so each program can race
its codes once for each of them before M is known. It leaves the winners beside its parts of the JSD sums; the program that
arrives last adds the parts up, always in the same order, and picks M and the best of its winners. So no program goes over
all codes alone, and the result has the same bits whichever is last.

What is relative to a maximum (`contrast.complement`, F, the sum of exponentials) is relative to that of the codes seen so
far, and is shifted when a larger one comes.

Scores F that are there already (truncated, or from a method without a sweep of its own) are drawn from by a second call, as
the logits of a single layer: `as_single_layer_logits`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels import philox
from janus_dola.kernels.contrast import FAR, LN2, LOWEST
from janus_dola.kernels.gpu.launch import SweepLaunch, sweep_launch_of
from janus_dola.kernels.types import SampledCodes, SamplingTensors

_LN2, _HALF_LN2 = tl.constexpr(LN2), tl.constexpr(LN2 / 2)
_LOWEST, _FAR = tl.constexpr(LOWEST), tl.constexpr(FAR)
# The series of k(x) = x tanh x - log cosh x by the powers x^10, x^8 ... x^2, exact to 1e-8 where 2 x is below _NEAR.
_K10, _K8, _K6, _K4, _K2 = (tl.constexpr(each) for each in (31 / 1575, -17 / 360, 1 / 9, -1 / 4, 1 / 2))
_NEAR = tl.constexpr(0.5)
# log1p(t) / t on [0, 1] by the powers t^0 ... t^9, exact to 5e-9: fitted at 200 Chebyshev points.
_R0, _R1, _R2, _R3, _R4, _R5, _R6, _R7, _R8, _R9 = (
    tl.constexpr(each)
    for each in (
        1.0, -0.4999990463, 0.3333000541, -0.2495455891, 0.1967811733, -0.1531186253, 0.1061426476, -0.0570642017,
        0.0199071616, -0.0032563785,
    )
)  # fmt: skip
_TILES_AT_ONCE = tl.constexpr(128)
_WORD = tl.constexpr(philox.WORD)
_SMALLEST_U = tl.constexpr(philox.SMALLEST_U)
_LARGEST_U = tl.constexpr(philox.LARGEST_U)


@triton.jit
def _log_sum_exp(tile_max_ptr, tile_sum_ptr, row, TILES: tl.constexpr):
    # Maximum and log-sum-exp of rows [N] of logits, from their tiles' maxima and sums: twice [N].
    maximum = tl.full([row.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([row.shape[0]], tl.float32)
    for start in range(0, TILES, _TILES_AT_ONCE):
        tile = start + tl.arange(0, _TILES_AT_ONCE)[None, :]
        offset = row[:, None] * TILES + tile
        tile_max = tl.load(tile_max_ptr + offset, mask=tile < TILES, other=float("-inf"))
        tile_sum = tl.load(tile_sum_ptr + offset, mask=tile < TILES, other=0.0)
        larger = tl.maximum(maximum, tl.max(tile_max, 1))
        total = total * tl.exp(maximum - larger) + tl.sum(tile_sum * tl.exp(tile_max - larger[:, None]), 1)
        maximum = larger
    return maximum, maximum + tl.log(total)


@triton.jit
def _gumbel(seed, position, quad):
    # Standard Gumbel noise, four codes per quad: [N] numbers of quads to [4 N]. `philox` says why in this form.
    w0, w1, w2, w3 = tl.philox(seed, quad, position.to(tl.int32), quad * 0, quad * 0)
    word = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    u = tl.minimum(tl.maximum(word.to(tl.float32) * _WORD, _SMALLEST_U), _LARGEST_U)
    # log1p(-u) = -u log(1 - u) / ((1 - u) - 1), which keeps the digits of a small u that 1 - u loses
    rest = 1.0 - u
    log1p = tl.where(rest == 1.0, -u, -u * tl.log(rest) / tl.where(rest == 1.0, 1.0, rest - 1.0))
    return -tl.log(-log1p)


@triton.jit
def _row_log_sum_exp(tile_max_ptr, tile_sum_ptr, row, TILES: tl.constexpr):
    # The same for one row: two numbers.
    maximum, lse = _log_sum_exp(tile_max_ptr, tile_sum_ptr, row + tl.arange(0, 1), TILES)
    return tl.sum(maximum, 0), tl.sum(lse, 0)


@triton.jit
def _divergence_factors(difference):
    # What max(p, q) is multiplied by in 2 JSD, and min(p, q) in 2 (ln 2 - JSD): `contrast.jensen_shannon` and `complement`.
    # There is no expm1 here: where e is small, so that digits of ln 2 - log(1 + t) cancel, the first is (1 + t) k(e / 2).
    e = tl.minimum(difference, _FAR)
    t = tl.exp(-e)
    more = 1.0 + t
    # log1p(t) / t
    ratio = ((((_R9 * t + _R8) * t + _R7) * t + _R6) * t + _R5) * t + _R4
    ratio = (((ratio * t + _R3) * t + _R2) * t + _R1) * t + _R0
    square = 0.25 * e * e
    series = ((((_K10 * square + _K8) * square + _K6) * square + _K4) * square + _K2) * square
    factor = tl.where(e < _NEAR, more * series, more * (_LN2 - ratio * t) - e * t)
    return factor, more * ratio + difference


@triton.jit
def _shift(best, from_, to, temperature):
    # Values relative to one F are made relative to another; F is -inf where no code was plausible.
    return best + (from_ - tl.where(to == float("-inf"), 0.0, to)) / temperature


@triton.jit
def _elect(
    image, race, final_logits, logits, lse, final_lse, premature, final_weight, premature_weight, temperature, greedy,
    parts_ptr, code_ptr, layer_ptr, jsd_ptr, finite_ptr, log_prob_ptr, V,
    CANDIDATES: tl.constexpr, RACES: tl.constexpr, PARTS: tl.constexpr, PARTS_PADDED: tl.constexpr,
):  # fmt: skip
    # What the last program of an image does: adds up the parts, and stores M and the best of its winners.
    # Names as in `_sweep_kernel`; race, lse and final_lse are [RACES_PADDED]. A part is the largest F of its codes, its
    # winner's (F - that) / T + G and code (an int32's bits), its share of 2 JSD, of the complement, and their scale, and its
    # sum of exp((F - that) / T).
    # Loads with .cg go past the first-level cache, which does not see what other programs store.
    part = tl.arange(0, PARTS_PADDED)[None, :]
    mask = part < PARTS
    parts_ptr += ((image * RACES + race)[:, None] * PARTS + part) * 8
    tops = tl.load(parts_ptr, mask=mask, other=float("-inf"), cache_modifier=".cg")
    bests = tl.load(parts_ptr + 1, mask=mask, other=float("-inf"), cache_modifier=".cg")
    codes = tl.load(parts_ptr + 2, mask=mask, other=0.0, cache_modifier=".cg").to(tl.int32, bitcast=True)
    if CANDIDATES > 0:
        twice = tl.load(parts_ptr + 3, mask=mask, other=0.0, cache_modifier=".cg")
        complements = tl.load(parts_ptr + 4, mask=mask, other=0.0, cache_modifier=".cg")
        scales = tl.load(parts_ptr + 5, mask=mask, other=_LOWEST, cache_modifier=".cg")
    totals = tl.load(parts_ptr + 6, mask=mask, other=0.0, cache_modifier=".cg")

    top = tl.max(tops, 1)
    bests = _shift(bests, tops, top[:, None], temperature)
    code = tl.minimum(tl.min(tl.where(bests == tl.max(bests, 1)[:, None], codes, V), 1), V - 1)
    score = tl.load(final_logits + code[:, None]) - final_lse[:, None]
    if CANDIDATES > 0:
        log_q = tl.where(premature == CANDIDATES, 0.0, tl.load(logits + code[:, None]) - lse[:, None])
        score = final_weight * score - premature_weight * log_q
    total = tl.sum(totals * tl.exp(_shift(0.0, tops, top[:, None], temperature)), 1)
    log_prob = tl.sum((score - top[:, None]) / temperature, 1) - tl.log(total)
    finite = (tl.abs(lse) < float("inf")) & (tl.abs(final_lse) < float("inf"))
    if CANDIDATES > 0:
        # M = argmax JSD as in `contrast.select_premature`, the lowest layer on a tie
        jsds = tl.minimum(tl.maximum(0.5 * tl.sum(twice, 1), 0.0), _LN2)
        scale = tl.max(scales, 1)
        complement = tl.sum(tl.exp(scales - scale[:, None]) * complements, 1)
        complement *= tl.exp(tl.minimum(scale - tl.min(scale, 0), _FAR))
        order = tl.where(tl.max(jsds, 0) > _HALF_LN2, -complement, jsds)
        most_diverging = tl.min(tl.where(order == tl.max(order, 0), race, RACES - 1), 0)
        layer = tl.where(premature < 0, most_diverging, premature)
        jsd = tl.max(tl.where(race == layer, jsds, 0.0), 0)
        drawn = race == tl.minimum(layer, RACES - 1)  # without contrast all are the same
        code, log_prob = tl.min(tl.where(drawn, code, V), 0), tl.max(tl.where(drawn, log_prob, float("-inf")), 0)
    else:
        layer, jsd, code, log_prob = CANDIDATES, 0.0, tl.min(code, 0), tl.max(log_prob, 0)
    tl.store(layer_ptr + image, layer)
    tl.store(jsd_ptr + image, jsd)
    # A sum of exponentials is NaN where a logit was not finite.
    tl.store(finite_ptr + image, tl.min(finite.to(tl.int32), 0) == 1)
    tl.store(code_ptr + image, code.to(tl.int64))
    tl.store(log_prob_ptr + image, tl.where(greedy, 0.0, tl.minimum(log_prob, 0.0)))


@triton.jit
def _sweep_kernel(
    logits_ptr,  # [L, B, V] fp32, guided; the final layer last
    tile_max_ptr,  # [L, B, TILES] fp32
    tile_sum_ptr,  # [L, B, TILES] fp32
    seeds_ptr,  # [B] int64
    position_ptr,  # [B] int64
    temperature_ptr,  # [B] fp32, T; 0 is greedy
    log_alpha_ptr,  # [B] fp32
    premature_ptr,  # [B] int64, index into the stack; the final layer for no contrast, negative: by JSD
    final_weight_ptr,  # [B] fp32, w_N
    premature_weight_ptr,  # [B] fp32, w_M
    parts_ptr,  # [B, max(C, 1), PARTS, 8] fp32, what each program leaves: see `_elect`
    arrived_ptr,  # [B] int32, 0, and again when all is done
    code_ptr,  # [B] int64
    layer_ptr,  # [B] int64
    jsd_ptr,  # [B] fp32
    finite_ptr,  # [B] bool
    log_prob_ptr,  # [B] fp32
    images, V, TILES: tl.constexpr,
    CANDIDATES: tl.constexpr,  # C = L - 1
    PARTS: tl.constexpr,  # programs per image
    BLOCK_V: tl.constexpr,
    RACES_PADDED: tl.constexpr, PARTS_PADDED: tl.constexpr,  # to powers of two
):  # fmt: skip
    image, part = tl.program_id(0), tl.program_id(1)
    FINAL: tl.constexpr = CANDIDATES
    RACES: tl.constexpr = CANDIDATES if CANDIDATES > 0 else 1
    race = tl.minimum(tl.arange(0, RACES_PADDED), RACES - 1)  # padding repeats the last
    row = race * images + image
    seed, position = tl.load(seeds_ptr + image), tl.load(position_ptr + image)
    temperature, log_alpha = tl.load(temperature_ptr + image), tl.load(log_alpha_ptr + image)
    premature = tl.load(premature_ptr + image).to(tl.int32)
    final_weight = tl.where(premature == FINAL, 1.0, tl.load(final_weight_ptr + image))
    premature_weight = tl.load(premature_weight_ptr + image)
    # The final layer's row, once for each race: with a warp for each race, warps exchange nothing until they store.
    final_row = row * 0 + FINAL * images + image
    final_logits = logits_ptr + final_row.to(tl.int64)[:, None] * V
    logits = logits_ptr + row.to(tl.int64)[:, None] * V
    v = (part * BLOCK_V + tl.arange(0, BLOCK_V))[None, :]
    z = tl.load(final_logits + v, mask=v < V, other=_LOWEST)
    if CANDIDATES > 0:
        z_early = tl.load(logits + v, mask=v < V, other=_LOWEST)
    final_max, final_lse = _log_sum_exp(tile_max_ptr, tile_sum_ptr, final_row, TILES)
    _, lse = _log_sum_exp(tile_max_ptr, tile_sum_ptr, row, TILES)
    threshold = (final_max + log_alpha)[:, None]
    divisor = tl.where(temperature > 0, temperature, 1.0)

    scale = tl.full([RACES_PADDED], _LOWEST, tl.float32)
    twice, complement = tl.zeros([RACES_PADDED], tl.float32), tl.zeros([RACES_PADDED], tl.float32)
    highest = tl.full([RACES_PADDED], float("-inf"), tl.float32)
    best = tl.full([RACES_PADDED], float("-inf"), tl.float32)
    winner, total = tl.zeros([RACES_PADDED], tl.int32), tl.zeros([RACES_PADDED], tl.float32)
    for start in range(part * BLOCK_V, V, PARTS * BLOCK_V):
        noise = _gumbel(seed, position, start // 4 + tl.arange(0, BLOCK_V // 4))
        noise = tl.where(temperature > 0, noise, 0.0)[None, :]
        plausible = (v < V) & (z >= threshold)
        log_p = z - final_lse[:, None]
        if CANDIDATES > 0:
            log_q = z_early - lse[:, None]
            log_q = tl.where(premature == FINAL, 0.0, log_q)  # no contrast: F = log p, and the JSD is not used
            d = log_q - log_p
            smaller = tl.minimum(log_p, log_q)
            next_scale = tl.maximum(scale, tl.max(smaller, 1))
            factor, factor_of_complement = _divergence_factors(tl.abs(d))
            twice += tl.sum(tl.exp(tl.maximum(log_p, log_q)) * factor, 1)
            complement *= tl.exp(scale - next_scale)
            complement += tl.sum(tl.exp(smaller - next_scale[:, None]) * factor_of_complement, 1)
            scale = next_scale
            score = tl.where(plausible, final_weight * log_p - premature_weight * log_q, float("-inf"))
        else:
            score = tl.where(plausible, log_p, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        lower = _shift(0.0, highest, higher, divisor)
        best += lower
        total *= tl.exp(lower)
        score = _shift(0.0, score, higher[:, None], divisor)
        total += tl.sum(tl.exp(score), 1)
        score += noise
        highest = higher
        # the lowest code on a tie
        top = tl.max(score, 1)
        code = tl.min(tl.where(score == top[:, None], v, V), 1)
        winner = tl.where(top > best, code, winner)
        best = tl.maximum(best, top)
        v += PARTS * BLOCK_V
        z = tl.load(final_logits + v, mask=v < V, other=_LOWEST)
        if CANDIDATES > 0:
            z_early = tl.load(logits + v, mask=v < V, other=_LOWEST)
    number = tl.arange(0, 8)[None, :]
    left = tl.where(number == 0, highest[:, None], best[:, None])
    left = tl.where(number == 2, winner.to(tl.float32, bitcast=True)[:, None], left)
    if CANDIDATES > 0:
        left = tl.where(number == 3, twice[:, None], left)
        left = tl.where(number == 4, complement[:, None], left)
        left = tl.where(number == 5, scale[:, None], left)
    left = tl.where(number == 6, total[:, None], left)
    mine = parts_ptr + ((image * RACES + race) * PARTS + part)[:, None] * 8 + number
    tl.store(mine, left, mask=(tl.arange(0, RACES_PADDED) < RACES)[:, None])

    tl.debug_barrier()  # all threads have stored before one of them says so
    if tl.atomic_add(arrived_ptr + image, 1, sem="acq_rel", scope="gpu") == PARTS - 1:
        tl.store(arrived_ptr + image, 0)  # for the next launch
        _elect(
            image, race, final_logits, logits, lse, final_lse, premature, final_weight, premature_weight, divisor,
            temperature == 0, parts_ptr, code_ptr, layer_ptr, jsd_ptr, finite_ptr, log_prob_ptr, V,
            CANDIDATES, RACES, PARTS, PARTS_PADDED,
        )  # fmt: skip


@triton.jit
def _scores_kernel(
    logits_ptr,  # [L, B, V] fp32, guided; the final layer last
    tile_max_ptr,  # [L, B, TILES] fp32
    tile_sum_ptr,  # [L, B, TILES] fp32
    layer_ptr,  # [B] int64, M
    log_alpha_ptr,  # [B] fp32
    final_weight_ptr,  # [B] fp32, w_N
    premature_weight_ptr,  # [B] fp32, w_M
    scores_ptr,  # [B, V] fp32, F
    images, V, TILES: tl.constexpr, FINAL: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    final = FINAL * images + image
    final_max, final_lse = _row_log_sum_exp(tile_max_ptr, tile_sum_ptr, final, TILES)
    z = tl.load(logits_ptr + final.to(tl.int64) * V + v, mask=v < V, other=0.0)
    score = z - final_lse
    layer = tl.load(layer_ptr + image).to(tl.int32)
    if layer < FINAL:
        row = layer * images + image
        _, lse = _row_log_sum_exp(tile_max_ptr, tile_sum_ptr, row, TILES)
        log_q = tl.load(logits_ptr + row.to(tl.int64) * V + v, mask=v < V, other=0.0) - lse
        score = tl.load(final_weight_ptr + image) * score - tl.load(premature_weight_ptr + image) * log_q
    score = tl.where(z >= final_max + tl.load(log_alpha_ptr + image), score, float("-inf"))
    tl.store(scores_ptr + image.to(tl.int64) * V + v, score, mask=v < V)


def sweep_constants(codes: int, candidates: int, launch: SweepLaunch) -> dict[str, int]:
    """Returns what a sweep is compiled for. With many candidates it has fewer codes and parts: registers end."""
    races = triton.next_power_of_2(max(1, candidates))
    most = (512 if races < 32 else 256) * launch.num_warps // races
    block = max(4, min(launch.block_codes, most))
    parts = min(triton.cdiv(codes, block), launch.max_parts, most)
    padded = {"RACES_PADDED": races, "PARTS_PADDED": triton.next_power_of_2(parts)}
    return {"CANDIDATES": candidates, "PARTS": parts, "BLOCK_V": block, **padded}


def sweep(
    logits: Tensor,
    tile_max: Tensor,
    tile_sum: Tensor,
    sampling: SamplingTensors,
    seeds: Tensor,
    position: Tensor,
    arrived: Tensor | None = None,
    launch: SweepLaunch | None = None,
) -> SampledCodes:
    """Chooses each image's premature layer and draws a code from softmax(F / T).

    Args:
        logits, tile_max, tile_sum: as `codebook` returns them.
        sampling: temperature and DoLa's numbers for each image; guidance is in the logits already.
        seeds, position: [B] int64, each image's seed and where the token stands in it.
        arrived: [B] int32, zeros, which it leaves as they are; None makes them.
        launch: block shapes; None reads them from the launch table.
    """
    layers, images, codes = logits.shape
    launch, contrast = launch or sweep_launch_of(logits), sampling.contrast
    constants = sweep_constants(codes, layers - 1, launch)

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    dtypes = torch.int64, torch.int64, torch.float32, torch.bool, torch.float32
    swept = SampledCodes(*(new(images, dtype=each) for each in dtypes))
    parts = new(images, max(1, layers - 1), constants["PARTS"], 8, dtype=torch.float32)
    if arrived is None:
        arrived = torch.zeros(images, dtype=torch.int32, device=logits.device)
    _sweep_kernel[(images, constants["PARTS"])](
        logits, tile_max, tile_sum, seeds, position, sampling.temperature, contrast["log_alpha"], contrast["premature"],
        contrast["final_weight"], contrast["premature_weight"], parts, arrived, swept.code, swept.layer, swept.jsd,
        swept.finite, swept.log_prob, images, codes,
        TILES=tile_max.shape[-1], **constants, num_warps=launch.num_warps, enable_fp_fusion=True,
    )  # fmt: skip
    return swept


def scores(
    logits: Tensor,
    tile_max: Tensor,
    tile_sum: Tensor,
    layer: Tensor,
    sampling: SamplingTensors,
    launch: SweepLaunch | None = None,
) -> Tensor:
    """Computes DoLa's F, [B, V] float32, -inf outside V_head; `layer` is as `sweep` chose it, the rest as for `sweep`."""
    layers, images, codes = logits.shape
    launch, contrast = launch or sweep_launch_of(logits), sampling.contrast
    out = torch.empty(images, codes, dtype=torch.float32, device=logits.device)
    _scores_kernel[(images, triton.cdiv(codes, launch.block_codes))](
        logits, tile_max, tile_sum, layer, contrast["log_alpha"], contrast["final_weight"], contrast["premature_weight"],
        out, images, codes,
        TILES=tile_max.shape[-1], FINAL=layers - 1, BLOCK_V=launch.block_codes, num_warps=launch.num_warps,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out


def as_single_layer_logits(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turns scores F [B, V] into what `sweep` draws from: logits [1, B, V], tile_max and tile_sum [1, B, 1].

    The exponentials are said to sum to 1, which need not be true: what is common to all codes changes nothing. The sweep's
    own contrast must admit all codes.
    """
    tiles = torch.zeros(2, 1, len(scores), 1, dtype=torch.float32, device=scores.device)
    tiles[1] = 1
    return scores.unsqueeze(0), tiles[0], tiles[1]
