"""Weights laid out for a CPU's products, in 16 bits: half the bytes of float32 to read, and none of them moved at a product.

What is packed is held in no other form. Each row's bits are the same wherever it stands among a fixed number of rows
(tests/kernels/test_packed.py).
"""

from abc import ABC, abstractmethod
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

HAS_ONEDNN = torch.backends.mkldnn.is_available()  # asked here, since torch's compiler cannot look into the question
_ROWS_OF_A_PASS = 16  # which oneDNN may choose its layout by; other numbers are about as fast


@cache
def has_amx() -> bool:
    """Returns whether oneDNN multiplies bfloat16 by this processor's tiles (AMX): many rows in about the time of few."""
    return HAS_ONEDNN and torch.cpu._is_amx_tile_supported()


def onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies rows [N, K] by a weight [O, K], plain or laid out by oneDNN, and adds a bias."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def onednn_added(residual: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns residual [N, O] + rows [N, K] W^T + b, added before anything is rounded to their dtype."""
    return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, weight, bias, "add")


class Packed(ABC):
    """A matrix [O, K], applied to rows."""

    stored_dtype: torch.dtype  # the weight's
    dtype: torch.dtype  # that of the rows it is applied to
    device = torch.device("cpu")

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape

    @abstractmethod
    def __call__(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiplies rows [N, K] to [N, O], and adds a bias [O]."""

    @abstractmethod
    def added_to(self, residual: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Adds a residual [N, O] to what a call returns, in a new tensor."""

    @abstractmethod
    def unpack(self) -> Tensor:
        """Returns a copy of the weight, [O, K]."""


class PackedHalf(Packed):
    """A matrix in float16, applied to float32 rows at float32's accuracy.

    FBGEMM, which torch's builds for x86 hold, widens float16 weights in its registers and multiplies and sums in float32. So
    the product differs from the exact one by float32's rounding alone.

    Args:
        weight: [O, K] on the CPU, in any floating dtype; rounded to float16.
    Raises:
        ValueError: a weight is not finite in float16.
    """

    stored_dtype, dtype = torch.float16, torch.float32

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        half = weight.detach().to(torch.float16)
        if not half.isfinite().all():
            raise ValueError(
                f"a weight of shape {list(weight.shape)} must be finite in float16, got a largest absolute value of "
                f"{weight.abs().max().item():g}; take float32 or bfloat16"
            )
        self._packed = torch.ops.quantized.linear_prepack_fp16(half.float(), None)

    def __call__(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiplies float32 rows [N, K] to [N, O]."""
        padding = _rows_alike(len(rows)) - len(rows)
        padded = F.pad(rows, (0, 0, 0, padding)) if padding else rows
        product = torch.ops.quantized.linear_dynamic_fp16(padded, self._packed)[: len(rows)]
        return product if bias is None else product.add_(bias)

    def added_to(self, residual: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Adds a residual, float32."""
        return self(rows, bias).add_(residual)

    def unpack(self) -> Tensor:
        """Returns a copy of the weight, float16."""
        return torch.ops.quantized.linear_unpack_fp16(self._packed)[0]


class PackedBfloat16(Packed):
    """A matrix in bfloat16, applied to bfloat16 rows; the bits are those of the plain product.

    oneDNN has to lay a plain weight out for the processor's tiles at every product (bench/findings.md).

    Args:
        weight: [O, K] bfloat16 on the CPU.
    """

    stored_dtype = dtype = torch.bfloat16

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_OF_A_PASS)

    def __call__(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiplies bfloat16 rows [N, K] to [N, O]."""
        return onednn(rows, self._packed, bias)

    def added_to(self, residual: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Adds a residual before anything is rounded to bfloat16."""
        return onednn_added(residual, rows, self._packed, bias)

    def unpack(self) -> Tensor:
        """Returns a copy of the weight, bfloat16."""
        return self._packed.to_dense()

    def __reduce__(self) -> tuple[type["PackedBfloat16"], tuple[Tensor]]:
        """Copies and pickles by the plain weight; torch cannot copy a packed one."""
        return PackedBfloat16, (self.unpack(),)


def packing_of(dtype: torch.dtype) -> type[Packed] | None:
    """Returns how weights of a dtype are packed for this CPU: float16 on x86, bfloat16 with AMX; None: not at all."""
    if dtype == torch.float16 and can_pack():
        return PackedHalf
    return PackedBfloat16 if dtype == torch.bfloat16 and has_amx() else None


def can_pack() -> bool:
    """Returns whether this torch has FBGEMM's products, and this processor runs them: x86 with AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines


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
