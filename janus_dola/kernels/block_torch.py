"""A block of the language model (Llama), for W new positions of each row, written out on tensors.

    y = x + W_o attention(rotate(W_qkv norm(x)))
    x'= y + W_d (silu(g) * u),   [g, u] = W_gu norm(y)

Keys and values are written into a buffer of fixed size, each row at positions of its own; a position attends to those up to
itself. Nothing here depends on how far other rows have come, but for how many positions are looked at (`visible`): those
behind a position add zeros to its sums. So what a row gives depends on that row alone.

Letters: R rows, W new positions of each, D hidden size, H heads (of queries, and of keys and values), d head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels.packed import PackedHalf

# Up to these sizes what oneDNN takes to begin is a good part of a product.
_SMALL_WEIGHT, _FEW_ROWS = 1 << 20, 4
_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # asked here, since torch's compiler cannot look into the question


class Product(Protocol):
    """A matrix, applied to rows."""

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, K] to [N, O]."""

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """residual [N, O] + the product of rows [N, K], in a new tensor."""


@dataclass(frozen=True)
class Matrix:
    """The product with a weight that lies plain or packed: rows W^T + b."""

    weight: Tensor | PackedHalf  # [O, K]
    bias: Tensor | None = None  # [O]

    def __call__(self, rows: Tensor) -> Tensor:
        """[N, K] to [N, O]."""
        if isinstance(self.weight, PackedHalf):
            return self._biased(self.weight(rows))
        if _by_onednn(rows, self.weight):
            return _onednn(rows, self.weight, self.bias)
        return F.linear(rows, self.weight, self.bias)

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """residual [N, O] + the product of rows [N, K]."""
        if isinstance(self.weight, PackedHalf):
            return self(rows).add_(residual)
        if _by_onednn(rows, self.weight):
            if torch.compiler.is_compiling():  # the compiler does not know that product, and fuses the sum itself
                return residual + self(rows)
            return _onednn_added(residual, rows, self.weight, self.bias)
        return self._biased(torch.addmm(residual, rows, self.weight.T))

    def _biased(self, product: Tensor) -> Tensor:
        return product if self.bias is None else product.add_(self.bias)


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _onednn_added(residual: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(rows, residual, weight, bias, "add")


def _by_onednn(rows: Tensor, weight: Tensor) -> bool:
    """Whether a float32 product on a CPU is oneDNN's.

    torch's own takes up to three times as long with a large weight, and with many rows up to twice; and with 5 to 11 rows on
    two threads the bits of a row depend on its place (bench/findings.md).
    """
    large = weight.numel() >= _SMALL_WEIGHT or len(rows) > _FEW_ROWS
    return large and rows.device.type == "cpu" and rows.dtype == torch.float32 and _HAS_ONEDNN


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last dimension, in the dtype of x.

    On a CPU torch takes six operations for it, and one for a LayerNorm. (x, -x) has the mean 0, so its LayerNorm is this.
    """

    weight: Tensor  # [D]
    eps: float
    _twice: Tensor | None = field(init=False, repr=False)  # the weight beside itself, on a CPU

    def __post_init__(self) -> None:
        object.__setattr__(self, "_twice", self.weight.repeat(2) if self.weight.device.type == "cpu" else None)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        if self._twice is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        both = torch.cat([x, -x], -1)
        return F.layer_norm(both, self._twice.shape, self._twice, None, self.eps)[:, : len(self.weight)]


@dataclass(frozen=True)
class BlockWeights:
    """What a block computes with."""

    attention_norm: Norm
    qkv: Product  # D to (H_q + 2 H_kv) d: queries, keys, values
    output: Product  # H_q d to D
    mlp_norm: Norm
    gate_up: Product  # D to 2 I
    down: Product  # I to D
    query_heads: int
    key_value_heads: int
    head_size: int
    scaling: float  # of queries times keys

    @property
    def heads_together(self) -> int:
        """G, how many query heads share a head of keys."""
        return self.query_heads // self.key_value_heads


@dataclass(frozen=True)
class Positions:
    """Where the new positions of all rows are; the same for every block of a pass."""

    cos: Tensor  # [R, W, 1, d], of the rotary embedding
    sin: Tensor  # [R, W, 1, d], the first half negated
    index: Tensor  # [R * W] int64, row * capacity + position
    mask: Tensor  # [R, 1, G W, visible], added to the scores; G query heads share a head of keys

    @staticmethod
    def of(
        start: Tensor, window: int, rotary: "Rotary", capacity: int, visible: int, heads_together: int
    ) -> "Positions":
        """For rows whose new positions are start .. start + window - 1.

        Args:
            start: [R] int64.
            capacity: positions that the buffer of keys and values has for each row.
            visible: positions that attention looks at, at least every start + window.
            heads_together: G.
        """
        device, dtype = start.device, rotary.cos.dtype
        position = start.unsqueeze(1) + torch.arange(window, device=device)
        row = torch.arange(len(start), device=device).unsqueeze(1)
        ahead = torch.arange(visible, device=device) > position.unsqueeze(-1)
        mask = torch.zeros(ahead.shape, dtype=dtype, device=device).masked_fill_(ahead, -torch.inf)
        known = position.clamp(max=len(rotary.cos) - 1)  # beyond lie guesses that nobody reads
        return Positions(
            rotary.cos[known].unsqueeze(2),
            rotary.sin[known].unsqueeze(2),
            (row * capacity + position).flatten(),
            mask.repeat(1, heads_together, 1).unsqueeze(1),
        )


@dataclass(frozen=True)
class Rotary:
    """Tables of the rotary embedding: rotate(x) = x cos + roll(x, d / 2) sin."""

    cos: Tensor  # [positions, d]
    sin: Tensor  # [positions, d], the first half negated

    @staticmethod
    def of(cos: Tensor, sin: Tensor) -> "Rotary":
        """From cosines and sines [positions, d], each half the same."""
        low, high = sin.chunk(2, -1)
        return Rotary(cos.contiguous(), torch.cat([-low, high], -1))


@dataclass(frozen=True)
class PassStart:
    """Where the new positions of all rows are, before a `Positions` is made of it; our own kernels need no more."""

    start: Tensor  # [R] int64, of the new positions of each row
    rotary: Rotary
    visible: int  # positions that attention looks at, at least every start + W


def attention(queries: Tensor, keys_values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Softmax attention of grouped heads.

    Args:
        queries: [R, W, H_q, d].
        keys_values: [R, visible, 2, H_kv, d], keys and values.
        mask: [R, 1, G W, visible].
    Returns:
        [R * W, H_q d].
    """
    rows, window, query_heads, size = queries.shape
    keys, values = keys_values.transpose(1, 3).unbind(2)  # [R, H_kv, visible, d]
    groups = query_heads // keys.shape[1]
    if groups == 1:
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=mask, scale=scaling)
        return mixed.transpose(1, 2).reshape(rows * window, query_heads * size)
    # Heads that share keys stand below each other, as if they were positions.
    stacked = queries.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, scale=scaling)
    return mixed.unflatten(2, (groups, window)).permute(0, 3, 1, 2, 4).reshape(rows * window, query_heads * size)


def block(x: Tensor, weights: BlockWeights, keys_values: Tensor, place: Positions) -> Tensor:
    """The block's output for the new positions; their keys and values are written into the buffer.

    Args:
        x: [R * W, D].
        keys_values: [R, capacity, 2, H_kv, d], finite.
    Returns:
        [R * W, D], a new tensor.
    """
    size, rows, visible = weights.head_size, keys_values.shape[0], place.mask.shape[-1]
    qkv = weights.qkv(weights.attention_norm(x)).view(rows, -1, *_heads(weights))
    rotated = qkv[:, :, : weights.query_heads + weights.key_value_heads]
    rolled = rotated.roll(size // 2, -1)
    rotated.mul_(place.cos).addcmul_(rolled, place.sin)
    new = qkv[:, :, weights.query_heads :].flatten(0, 1).unflatten(1, keys_values.shape[2:4])
    keys_values.flatten(0, 1).index_copy_(0, place.index, new)
    mixed = attention(qkv[:, :, : weights.query_heads], keys_values[:, :visible], place.mask, weights.scaling)
    y = weights.output.added_to(x, mixed)
    gate, up = weights.gate_up(weights.mlp_norm(y)).chunk(2, -1)
    return weights.down.added_to(y, F.silu(gate).mul_(up))


def _heads(weights: BlockWeights) -> tuple[int, int]:
    return weights.query_heads + 2 * weights.key_value_heads, weights.head_size


def run_blocks(
    x: Tensor,
    blocks: Sequence[BlockWeights],
    keys_values: Tensor,
    place: Positions,
    layers: Sequence[int],
    run: Callable[[Tensor, BlockWeights, Tensor, Positions], Tensor] = block,
) -> Tensor:
    """Runs all blocks, and keeps what those read out leave.

    Args:
        x: [R * W, D], embeddings.
        keys_values: [N, R, capacity, 2, H_kv, d].
        layers: in 1 .. N-1, ascending; layer j is the output of block j.
        run: `block`, or what it was compiled to.
    Returns:
        [len(layers) + 1, R * W, D]: of the layers, then of the final block, all before the final norm.
    """
    found = []
    for number, (weights, own) in enumerate(zip(blocks, keys_values.unbind(0), strict=True), 1):
        x = run(x, weights, own, place)
        if number in layers:
            found.append(x)
    return torch.stack([*found, x])


def run_whole(
    embeddings: Tensor, blocks: Sequence[BlockWeights], rotary: Rotary, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Runs rows from their first position to their last, in one pass.

    Args:
        embeddings: [R, W, D].
        layers: as for `run_blocks`.
    Returns:
        keys and values [N, R, W, 2, H_kv, d], and the layers' hidden states [len(layers) + 1, R, W, D].
    """
    rows, length, _ = embeddings.shape
    keys_values = embeddings.new_zeros(buffer_shape(blocks, rows, length))
    start = torch.zeros(rows, dtype=torch.int64, device=embeddings.device)
    place = Positions.of(start, length, rotary, length, length, blocks[0].heads_together)
    states = run_blocks(embeddings.flatten(0, 1), blocks, keys_values, place, layers)
    return keys_values, states.unflatten(1, (rows, length))


def buffer_shape(blocks: Sequence[BlockWeights], rows: int, positions: int) -> tuple[int, ...]:
    """Of the keys and values of all blocks: [N, rows, positions, 2, H_kv, d]."""
    return len(blocks), rows, positions, 2, blocks[0].key_value_heads, blocks[0].head_size
