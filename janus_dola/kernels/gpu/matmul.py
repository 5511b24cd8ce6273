"""The loop that all matrix products share: a few rows of activations times weights that are read once.

Weights are the left operand: they fill the 64 rows that the matrix instructions of Hopper want, and the few rows of
activations are padded. bfloat16 weights become float16 in registers where activations are, which costs fewer instructions
than the loads leave idle; a float16 copy of them would cost memory, and go stale when the model is trained.

The head stage multiplies in float16, whose largest number is 65504. So its activations are held at `ACTIVATION_SCALE`, and
its products are divided by it: a sixteenth is a power of two and loses nothing, and leaves room for numbers up to a million.
"""

import triton
import triton.language as tl

from janus_dola.kernels.gpu.launch import INTERPRETED

ACTIVATION_SCALE = tl.constexpr(1 / 16)
_WIDENED = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, total):
    """Returns total + a b, float32. Triton's interpreter knows no products of bfloat16; in float32 they are the same."""
    if _WIDENED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def product(
    weight_ptr,  # [OUTPUTS, INPUTS]
    x_ptr,  # [COLUMNS, INPUTS], rows of activations in the dtype to multiply in
    output,  # [BLOCK_OUTPUTS], which outputs
    column,  # [BLOCK_COLUMNS], which rows of activations
    outputs, columns, inputs,
    first,  # the inputs that are summed over: first .. last - 1, where last is `inputs` or a multiple of the block away
    last,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    """Sums weight[output, i] x[column, i] over the inputs i: [BLOCK_OUTPUTS, BLOCK_COLUMNS] float32."""
    weight_rows = weight_ptr + output.to(tl.int64)[:, None] * inputs
    x_rows = x_ptr + column.to(tl.int64)[None, :] * inputs
    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_COLUMNS], tl.float32)
    for start in range(first, last, BLOCK_INPUTS):
        i = start + tl.arange(0, BLOCK_INPUTS)
        w = tl.load(weight_rows + i[None, :], mask=(output < outputs)[:, None] & (i < inputs)[None, :], other=0.0)
        x = tl.load(x_rows + i[:, None], mask=(i < inputs)[:, None] & (column < columns)[None, :], other=0.0)
        if w.dtype != x.dtype:
            w = w.to(tl.float32).to(x.dtype)  # a shift, and one instruction that rounds two
        total = dot(w, x, total)
    return total


@triton.jit
def two_products(
    weight_ptr, second_weight_ptr, x_ptr, output, column, outputs, columns, inputs,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_INPUTS: tl.constexpr,
):  # fmt: skip
    """Sums as `product` does over all inputs, for two weights, whose activations are read once."""
    weight_rows = weight_ptr + output.to(tl.int64)[:, None] * inputs
    second_rows = second_weight_ptr + output.to(tl.int64)[:, None] * inputs
    x_rows = x_ptr + column.to(tl.int64)[None, :] * inputs
    total = tl.zeros([BLOCK_OUTPUTS, BLOCK_COLUMNS], tl.float32)
    second = tl.zeros([BLOCK_OUTPUTS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, inputs, BLOCK_INPUTS):
        i = start + tl.arange(0, BLOCK_INPUTS)
        inside = (output < outputs)[:, None] & (i < inputs)[None, :]
        x = tl.load(x_rows + i[:, None], mask=(i < inputs)[:, None] & (column < columns)[None, :], other=0.0)
        total = dot(tl.load(weight_rows + i[None, :], mask=inside, other=0.0), x, total)
        second = dot(tl.load(second_rows + i[None, :], mask=inside, other=0.0), x, second)
    return total, second
