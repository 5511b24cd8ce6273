"""A weight in float16, laid out for a CPU: half the bytes of float32 to read, at float32's accuracy.

FBGEMM, which torch's builds for x86 hold, widens float16 weights in its registers and multiplies and sums in float32. So the
product differs from the exact one of these weights by float32's rounding alone. Each row's bits are the same wherever it
stands among a fixed number of rows (tests/kernels/test_packed.py).
"""

import torch
from torch import Tensor


def can_pack() -> bool:
    """Whether this torch has FBGEMM's products, and this processor runs them: x86 with AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines


class PackedHalf:
    """A matrix [O, K], applied to float32 rows.

    Args:
        weight: [O, K] on the CPU, in any floating dtype; rounded to float16.
    Raises:
        ValueError: a number of the weight is not finite in float16.
    """

    dtype, device = torch.float32, torch.device("cpu")  # of the rows it is applied to

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
        """[N, K] float32 to [N, O] float32."""
        return torch.ops.quantized.linear_dynamic_fp16(rows, self._packed)

    def unpack(self) -> Tensor:
        """[O, K] float16, a copy."""
        return torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
