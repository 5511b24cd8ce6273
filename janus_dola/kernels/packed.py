"""A weight in float16, laid out for a CPU: half the bytes of float32 to read, at float32's accuracy.

FBGEMM, which torch's builds for x86 hold, widens float16 weights in its registers and multiplies and sums in float32. So the
product differs from the exact one by float32's rounding alone. Each row's bits are the same wherever it
stands among a fixed number of rows (tests/kernels/test_packed.py).
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def can_pack() -> bool:
    """Returns whether this torch has FBGEMM's products, and this processor runs them: x86 with AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class PackedHalf:
    """A matrix [O, K], applied to float32 rows.

    Args:
        weight: [O, K] on the CPU, in any floating dtype; rounded to float16.
    Raises:
        ValueError: a weight is not finite in float16.
    """

    dtype, device = torch.float32, torch.device("cpu")  # what rows it is applied to

    def __init__(self, weight: Tensor) -> None:
        half = weight.detach().to(torch.float16)
        if not half.isfinite().all():
            raise ValueError(
                f"a weight of shape {list(weight.shape)} must be finite in float16, got a largest absolute value of "
                f"{weight.abs().max().item():g}; take float32 or bfloat16"
            )
        self.shape = weight.shape
        self._packed = torch.ops.quantized.linear_prepack_fp16(half.float(), None)

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiplies rows [N, K] float32 to [N, O] float32."""
        padding = _rows_alike(len(rows)) - len(rows)
        product = torch.ops.quantized.linear_dynamic_fp16(
            F.pad(rows, (0, 0, 0, padding)) if padding else rows, self._packed
        )
        return product[: len(rows)]

    def unpack(self) -> Tensor:
        """Returns a copy of the weight, [O, K] float16."""
        return torch.ops.quantized.linear_unpack_fp16(self._packed)[0]


@cache
def _rows_alike(rows: int) -> int:
    """Returns the least number of rows, at least `rows`, that FBGEMM multiplies alike.

    FBGEMM cuts rows into groups, and its kernels for one and two rows sum in another order than those for more. With AVX2
    alone 7 rows are a group of 5 and one of 2, so that a row's bits would depend on its place. Rows that are all the same
    show whether that happens.
    """
    generator = torch.Generator().manual_seed(0)
    packed = torch.ops.quantized.linear_prepack_fp16(torch.randn(64, 96, generator=generator).half().float(), None)
    row = torch.randn(1, 96, generator=generator)
    while True:
        product = torch.ops.quantized.linear_dynamic_fp16(row.expand(rows, -1).contiguous(), packed)
        if torch.equal(product, product[:1].expand_as(product)):
            return rows
        rows += 1
