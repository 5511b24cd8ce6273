"""First launch of the fused stage: applies the final norm to all layers and rows at once.

    x = LN_out(h) = h / sqrt(mean(h^2) + eps) * weight

Heads of 16 bits are multiplied in float16. bfloat16 weights lose nothing by that (below 6e-5 they are rounded to 6e-8),
while activations rounded to bfloat16 would miss the accuracy asked for, since guidance multiplies their error by w.

A head with a projection gets every row normalised. Without one (a single Linear, as text models have) guidance comes in here
already, since the Linear that follows lets it through unchanged (see `head_torch`).

Later launches count programs that are done. This one, before them all, sets their counters to 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from janus_dola.kernels.gpu.matmul import ACTIVATION_SCALE
from janus_dola.kernels.types import Head


@triton.jit
def _normalise_kernel(
    hidden_ptr,  # [L, R, D], R = 2B with guidance (conditional rows, then unconditional), else B
    norm_weight_ptr,  # [D]
    out_ptr,  # [L, B, D], x / 16 in the dtype to multiply in
    cfg_weight_ptr,  # [B] fp32, w; anything without guidance
    arrived_ptr,  # [COUNTERS] int32, set to 0
    images,  # B
    counters,
    D,
    eps,
    GUIDED: tl.constexpr,
    BLOCK_D: tl.constexpr,  # >= D
):
    pair = tl.program_id(0)
    d = tl.arange(0, BLOCK_D)
    if pair == 0:
        for start in range(0, counters, BLOCK_D):
            tl.store(arrived_ptr + start + d, tl.zeros([BLOCK_D], tl.int32), mask=start + d < counters)
    row = pair + pair // images * images if GUIDED else pair
    conditional = hidden_ptr + row.to(tl.int64) * D
    weight = tl.load(norm_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    x = _rms_norm(tl.load(conditional + d, mask=d < D, other=0.0), weight, D, eps)
    if GUIDED:
        u = _rms_norm(tl.load(conditional + images * D + d, mask=d < D, other=0.0), weight, D, eps)
        x = u + tl.load(cfg_weight_ptr + pair % images) * (x - u)
    tl.store(out_ptr + pair.to(tl.int64) * D + d, (x * ACTIVATION_SCALE).to(out_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _rms_norm(h, weight, D, eps):
    # h is a whole row, padded with zeros. As in `reference.rms_norm`, NaN where its squares are beyond float32.
    h = h.to(tl.float32)
    squares = tl.sum(h * h, 0) / D
    return h * tl.where(squares < float("inf"), tl.rsqrt(squares + eps), float("nan")) * weight


def multiplied_dtype(weights: torch.dtype) -> torch.dtype:
    """Returns the dtype in which weights and activations are multiplied: float16 for float16 and bfloat16."""
    return torch.float32 if weights == torch.float32 else torch.float16


def normalise(hidden_states: Tensor, head: Head, cfg_weight: Tensor | None, arrived: Tensor) -> Tensor:
    """Applies LN_out to every row, and with a `cfg_weight` guides each image: x / 16 in the `multiplied_dtype`.

    Args:
        hidden_states: [L, R, D] in one of `head_triton.DTYPES`; R is 2B with a `cfg_weight` (conditional, then
            unconditional), else any number.
        cfg_weight: [B] float32, w for each image, which returns [L, B, D]; None returns [L, R, D].
        arrived: [COUNTERS] int32, which becomes 0.
    """
    layers, rows, hidden = hidden_states.shape
    guided = cfg_weight is not None
    images = rows // 2 if guided else rows
    dtype = multiplied_dtype(hidden_states.dtype)
    x = torch.empty(layers, images, hidden, dtype=dtype, device=hidden_states.device)
    _normalise_kernel[(layers * images,)](
        hidden_states, head.norm_weight, x, x if cfg_weight is None else cfg_weight, arrived, images, len(arrived),
        hidden, head.norm_eps, GUIDED=guided, BLOCK_D=triton.next_power_of_2(hidden), num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return x
