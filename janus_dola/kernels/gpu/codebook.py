"""Last product of the fused stage: applies the codebook Linear to all layers and prepares a softmax over the codes.

    z = W2 x + b2          [L, B, V] float32

Beside the logits each tile of codes leaves its maximum m and sum exp(z - m), from which the sweep computes the log-sum-exp
without another pass. A tile holds all rows and a slice of W2, so that each weight is read once. Where a logit is not finite,
the sum is NaN.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.gpu.launch import MatmulLaunch, launch_of
from janus_dola.kernels.gpu.matmul import ACTIVATION_SCALE, product
from janus_dola.kernels.types import Head


@triton.jit
def _codebook_kernel(
    x_ptr,  # [L * B, E], x / 16 in the dtype to multiply in
    weight_ptr,  # [V, E]
    bias_ptr,  # [V], or anything without a bias
    logits_ptr,  # [L * B, V] fp32
    tile_max_ptr,  # [L * B, TILES] fp32
    tile_sum_ptr,  # [L * B, TILES] fp32
    pairs,  # L * B
    E, V, HAS_BIAS: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    pair = tl.program_id(1) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    inside_v, inside_pair = v < V, pair < pairs
    z = product(weight_ptr, x_ptr, v, pair, V, pairs, E, 0, E, BLOCK_V, BLOCK_PAIRS, BLOCK_E)
    z /= ACTIVATION_SCALE
    if HAS_BIAS:
        z += tl.load(bias_ptr + v, mask=inside_v, other=0.0).to(tl.float32)[:, None]

    logits = logits_ptr + pair.to(tl.int64)[None, :] * V + v[:, None]
    tl.store(logits, z, mask=inside_v[:, None] & inside_pair[None, :])

    # max and sum exp(z - max) over this tile's codes
    finite = tl.min((tl.abs(z) < float("inf")).to(tl.int32), 0) == 1
    z = tl.where(inside_v[:, None], z, float("-inf"))
    maximum = tl.max(z, 0)
    total = tl.sum(tl.exp(z - maximum[None, :]), 0)
    tile = pair * tl.num_programs(0) + tl.program_id(0)
    tl.store(tile_max_ptr + tile, maximum, mask=inside_pair)
    tl.store(tile_sum_ptr + tile, tl.where(finite, total, float("nan")), mask=inside_pair)


def codebook(x: Tensor, head: Head, launch: MatmulLaunch | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the logits of all codes, with partial softmax sums.

    Args:
        x: [L, B, E], as `project` returns it, or `normalise` for a head without a projection.
        launch: block shapes; None reads them from the launch table.
    Returns:
        logits: [L, B, V] float32.
        tile_max, tile_sum: [L, B, TILES] float32: over each tile of codes max z and sum exp(z - max z); NaN as said above.
    """
    layers, images, width = x.shape
    pairs, codes = layers * images, head.num_codes
    launch = launch or launch_of("codebook", x, pairs, codes)
    tiles = triton.cdiv(codes, launch.block_outputs)
    logits = torch.empty(layers, images, codes, dtype=torch.float32, device=x.device)
    tile_max = torch.empty(layers, images, tiles, dtype=torch.float32, device=x.device)
    tile_sum = torch.empty_like(tile_max)
    _codebook_kernel[(tiles, triton.cdiv(pairs, launch.block_columns))](
        x, head.code_weight, x if head.code_bias is None else head.code_bias, logits, tile_max, tile_sum, pairs, width,
        codes, HAS_BIAS=head.code_bias is not None, BLOCK_V=launch.block_outputs, BLOCK_PAIRS=launch.block_columns,
        BLOCK_E=launch.block_inputs, num_warps=launch.num_warps, num_stages=launch.num_stages,
        enable_fp_fusion=True,
    )  # fmt: skip
    return logits, tile_max, tile_sum
