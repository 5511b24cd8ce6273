"""A block of the language model (Llama) on each row's W new positions, written out on tensors.

    y = x + W_o attention(rotate(q, k), v),   q, k, v = [W_q, W_k, W_v] norm(x)
    x'= y + W_d (silu(g) * u),                g, u = [W_g, W_u] norm(y)

In some models (GLM-4) what is added to x, and to y, goes through a norm of its own first.
Keys and values are written into a buffer of fixed size, each row at its own positions; a position attends to all up to
itself. Nothing here depends on how far other rows have come, but for how many positions are looked at (`visible`): later
positions add zeros to a sum. So a row's result depends on that row alone.

Letters: R rows, W new positions per row, D hidden size, H heads (H_q for queries, H_kv for keys and values), d head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from janus_dola.kernels.packed import HAS_ONEDNN, Packed, onednn, onednn_added

# Below these sizes oneDNN's start takes a good part of a product.
_SMALL_WEIGHT, _FEW_ROWS = 1 << 20, 4


class Product(Protocol):
    """A matrix, applied to rows [N, K]."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiplies rows [N, K] to [N, O]."""

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """Adds the product of rows [N, K] to a residual [N, O], in a new tensor."""


@dataclass(frozen=True)
class Matrix:
    """A weight, plain or packed, to multiply rows with: rows W^T + b."""

    weight: Tensor | Packed  # [O, K]
    bias: Tensor | None = None  # [O]

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiplies rows [N, K] to [N, O]."""
        if isinstance(self.weight, Packed):
            return self.weight(rows, self.bias)
        if _by_onednn(rows, self.weight):
            return onednn(rows, self.weight, self.bias)
        return F.linear(rows, self.weight, self.bias)

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """Adds the product of rows [N, K] to a residual [N, O], in a new tensor."""
        if isinstance(self.weight, Packed):
            return self.weight.added_to(residual, rows, self.bias)
        if _by_onednn(rows, self.weight):
            if torch.compiler.is_compiling():  # the compiler does not know that product, and fuses the sum itself
                return residual + self(rows)
            return onednn_added(residual, rows, self.weight, self.bias)
        product = torch.addmm(residual, rows, self.weight.T)
        return product if self.bias is None else product.add_(self.bias)


@dataclass(frozen=True)
class Beside:
    """Products of the same rows, each with its own weight wherever that lies."""

    products: tuple[Callable[[Tensor], Tensor], ...]
    whole: Product | None = None  # all of them as one, where they lie in memory as one: fewer calls

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiplies rows [N, K] to [N, O_1 + O_2 + ...], the outputs side by side."""
        if self.whole is not None:
            return self.whole(rows)
        return torch.cat([product(rows) for product in self.products], -1)

    def halves(self, rows: Tensor) -> Sequence[Tensor]:
        """Multiplies rows [N, K] to [N, O] twice, by two products that have the same number of outputs."""
        if self.whole is not None:
            return self.whole(rows).chunk(2, -1)
        return [product(rows) for product in self.products]


def _by_onednn(rows: Tensor, weight: Tensor) -> bool:
    """Decides whether oneDNN computes a product: a float32 one on a CPU.

    torch's own takes up to three times as long with a large weight, and with many rows up to twice; and with 5 to 11 rows on
    two threads a row's bits depend on its place (bench/findings.md).
    """
    large = weight.numel() >= _SMALL_WEIGHT or len(rows) > _FEW_ROWS
    return large and rows.device.type == "cpu" and rows.dtype == torch.float32 and HAS_ONEDNN


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight over the last dimension, in the dtype of x.

    On a CPU torch takes six operations for it, and one for a LayerNorm. (x, -x) has the mean 0, so its LayerNorm is this.
    """

    weight: Tensor  # [D]
    eps: float
    _doubled_weight: Tensor | None = field(init=False, repr=False)  # the weight beside itself, on a CPU

    def __post_init__(self) -> None:
        object.__setattr__(self, "_doubled_weight", self.weight.repeat(2) if self.weight.device.type == "cpu" else None)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalises rows [N, D]."""
        if self._doubled_weight is None:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        both, doubled = torch.cat([x, -x], -1), self._doubled_weight
        return F.layer_norm(both, doubled.shape, doubled, None, self.eps)[:, : len(self.weight)]


@dataclass(frozen=True)
class BlockWeights:
    """The weights and sizes a block computes with."""

    attention_norm: Norm
    qkv: Beside  # D to H_q d, H_kv d and H_kv d: queries, keys, values
    output: Product  # H_q d to D
    mlp_norm: Norm
    gate_up: Beside  # D to I each: the gate, and what it is applied to
    down: Product  # I to D
    query_heads: int
    key_value_heads: int
    head_size: int
    scaling: float  # factor for queries times keys
    rotated: int | None = None  # of each head only so many numbers are rotated, the first; None for all
    # What attention, and the MLP, add goes through these first; Llama has neither.
    attention_norm_after: Norm | None = None
    mlp_norm_after: Norm | None = None

    @property
    def heads_together(self) -> int:
        """Returns G, how many query heads share a head of keys."""
        return self.query_heads // self.key_value_heads


@dataclass(frozen=True)
class Positions:
    """Where the new positions of all rows are; the same for every block in a pass."""

    cos: Tensor  # [R, W, 1, d], for the rotary embedding; d here is `BlockWeights.rotated` where that is set
    sin: Tensor  # [R, W, 1, d], the first half negated
    index: Tensor  # [R * W] int64, row * capacity + position
    mask: Tensor  # [R, 1, G W, visible], added to the scores; G query heads share a head of keys

    @staticmethod
    def of(
        start: Tensor,
        window: int,
        rotary: "Rotary",
        capacity: int,
        visible: int,
        heads_together: int,
        prompt_tokens: Tensor | None = None,
    ) -> "Positions":
        """Prepares rows whose new positions are start .. start + window - 1, in a buffer of `capacity` positions per row.

        `start` is [R] int64; `visible` and `prompt_tokens` as in `PassStart`; `heads_together` is G.
        """
        device, dtype = start.device, rotary.cos.dtype
        position = start.unsqueeze(1) + torch.arange(window, device=device)
        row = torch.arange(len(start), device=device).unsqueeze(1)
        ahead = torch.arange(visible, device=device) > position.unsqueeze(-1)
        mask = torch.zeros(ahead.shape, dtype=dtype, device=device).masked_fill_(ahead, -torch.inf)
        index = (row * capacity + position).flatten()
        if rotary.image is not None:
            assert prompt_tokens is not None
            position = position - prompt_tokens.unsqueeze(1) + rotary.image
        known = position.clamp(max=len(rotary.cos) - 1)  # later positions hold guesses that nobody reads
        return Positions(
            rotary.cos[known].unsqueeze(2),
            rotary.sin[known].unsqueeze(2),
            index,
            mask.repeat(1, heads_together, 1).unsqueeze(1),
        )


@dataclass(frozen=True)
class Rotary:
    """Tables for the rotary embedding: rotate(x) = x cos + roll(x, d / 2) sin.

    Only differences between positions matter. So where an image's codes have positions on several axes, all positions are
    counted from its first code, and one table serves prompts of any length.
    """

    cos: Tensor  # [positions, d]
    sin: Tensor  # [positions, d], the first half negated
    image: int | None = None  # the tables' row for an image's first code; None: they begin where each row begins

    @staticmethod
    def of(cos: Tensor, sin: Tensor, image: int | None = None) -> "Rotary":
        """Makes the tables from cosines and sines [positions, d], each half the same."""
        low, high = sin.chunk(2, -1)
        return Rotary(cos.contiguous(), torch.cat([-low, high], -1), image)


@dataclass(frozen=True)
class PassStart:
    """Where the new positions of all rows are. Our own kernels take it as it is; on tensors it becomes a `Positions`."""

    start: Tensor  # [R] int64, each row's first new position
    rotary: Rotary
    visible: int  # positions that attention looks at, at least every start + W
    prompt_tokens: Tensor | None = None  # [R] int64, positions before each row's image; needed with `Rotary.image`


def attention(queries: Tensor, keys_values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Computes softmax attention with grouped heads, [R * W, H_q d].

    Args:
        queries: [R, W, H_q, d].
        keys_values: [R, visible, 2, H_kv, d], keys and values.
        mask: [R, 1, G W, visible].
    """
    rows, window, query_heads, size = queries.shape
    keys, values = keys_values.transpose(1, 3).unbind(2)  # [R, H_kv, visible, d]
    groups = query_heads // keys.shape[1]
    if groups == 1:
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, attn_mask=mask, scale=scaling)
        return mixed.transpose(1, 2).reshape(rows * window, query_heads * size)
    # Heads that share keys are stacked as if they were positions.
    stacked = queries.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, scale=scaling)
    return mixed.unflatten(2, (groups, window)).permute(0, 3, 1, 2, 4).reshape(rows * window, query_heads * size)


def block(x: Tensor, weights: BlockWeights, keys_values: Tensor, place: Positions) -> Tensor:
    """Computes the block's output for the new positions in a new tensor, and writes their keys and values into the buffer.

    Args:
        x: [R * W, D].
        keys_values: [R, capacity, 2, H_kv, d], finite.
    """
    size, rows, visible = weights.head_size, keys_values.shape[0], place.mask.shape[-1]
    heads = weights.query_heads + 2 * weights.key_value_heads
    qkv = weights.qkv(weights.attention_norm(x)).view(rows, -1, heads, size)
    rotated = qkv[:, :, : weights.query_heads + weights.key_value_heads, : weights.rotated]
    rolled = rotated.roll(rotated.shape[-1] // 2, -1)
    rotated.mul_(place.cos).addcmul_(rolled, place.sin)
    new = qkv[:, :, weights.query_heads :].flatten(0, 1).unflatten(1, keys_values.shape[2:4])
    keys_values.flatten(0, 1).index_copy_(0, place.index, new)
    mixed = attention(qkv[:, :, : weights.query_heads], keys_values[:, :visible], place.mask, weights.scaling)
    y = _added(x, mixed, weights.output, weights.attention_norm_after)
    gate, up = weights.gate_up.halves(weights.mlp_norm(y))
    return _added(y, F.silu(gate).mul_(up), weights.down, weights.mlp_norm_after)


def _added(residual: Tensor, rows: Tensor, product: Product, norm: Norm | None) -> Tensor:
    return product.added_to(residual, rows) if norm is None else residual + norm(product(rows))


def run_blocks(
    x: Tensor,
    blocks: Sequence[BlockWeights],
    keys_values: Tensor,
    place: Positions,
    layers: Sequence[int],
    run: Callable[[Tensor, BlockWeights, Tensor, Positions], Tensor] = block,
) -> Tensor:
    """Runs all blocks, and keeps the outputs of those that are read.

    Args:
        x: [R * W, D], embeddings.
        keys_values: [N, R, capacity, 2, H_kv, d].
        layers: in 1 .. N-1, ascending; layer j is the output of block j.
        run: `block`, or its compiled form.
    Returns:
        [len(layers) + 1, R * W, D]: hidden states of the layers, then of the final block, all before the final norm.
    """
    states = []
    for number, (weights, own) in enumerate(zip(blocks, keys_values.unbind(0), strict=True), 1):
        x = run(x, weights, own, place)
        if number in layers:
            states.append(x)
    return torch.stack([*states, x])


def run_whole(
    embeddings: Tensor,
    blocks: Sequence[BlockWeights],
    rotary: Rotary,
    layers: Sequence[int],
    prompt_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs rows of embeddings [R, W, D] from their first position to their last, in one pass.

    `prompt_tokens` is as in `PassStart`; None where the rows are prompts as a whole.

    Returns:
        keys and values [N, R, W, 2, H_kv, d], and the layers' hidden states [len(layers) + 1, R, W, D].
    """
    rows, length, _ = embeddings.shape
    keys_values = embeddings.new_zeros(buffer_shape(blocks, rows, length))
    start = torch.zeros(rows, dtype=torch.int64, device=embeddings.device)
    prompt_tokens = start + length if prompt_tokens is None else prompt_tokens
    place = Positions.of(start, length, rotary, length, length, blocks[0].heads_together, prompt_tokens)
    states = run_blocks(embeddings.flatten(0, 1), blocks, keys_values, place, layers)
    return keys_values, states.unflatten(1, (rows, length))


def buffer_shape(blocks: Sequence[BlockWeights], rows: int, positions: int) -> tuple[int, ...]:
    """Returns the shape for the keys and values of all blocks: [N, rows, positions, 2, H_kv, d]."""
    return len(blocks), rows, positions, 2, blocks[0].key_value_heads, blocks[0].head_size
