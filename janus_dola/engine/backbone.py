"""The language model with static keys and values, fed with embeddings, whose hidden states the taps read.

Letters: N blocks, R rows (two an image), U distinct rows, S prompt tokens, D hidden size.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from janus_dola.models.parts import JanusParts
from janus_dola.prompt import PromptBatch

# Attention looks at a multiple of so many positions: few different shapes, little reading of what is not written yet.
VISIBLE_MULTIPLE = 64


def visible_length(written: int) -> int:
    """How many positions attention looks at when so many are written."""
    return -(-written // VISIBLE_MULTIPLE) * VISIBLE_MULTIPLE


@dataclass
class Place:
    """Where a step reads and writes, for all blocks."""

    position: Tensor  # [1] int64: where the next token is written
    visible: int  # positions that attention reads


class BlockKeyValues:
    """Keys and values of one block, in place: [R, heads, capacity, size] each."""

    def __init__(self, place: Place, shape: tuple[int, ...], parts: JanusParts) -> None:
        self._place = place
        self.keys, self.values = (torch.zeros(shape, dtype=parts.dtype, device=parts.device) for _ in range(2))

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes one token's keys and values [R, heads, 1, size] and gives back those of all visible positions."""
        place = self._place
        self.keys.index_copy_(2, place.position, keys)
        self.values.index_copy_(2, place.position, values)
        return self.keys[:, :, : place.visible], self.values[:, :, : place.visible]


class KeyValues:
    """Keys and values of all blocks: what transformers' attention calls its cache.

    The next position is a tensor on the device, so that a step is the same sequence of kernels each time.
    """

    def __init__(self, parts: JanusParts, rows: int, capacity: int) -> None:
        self.place = Place(torch.zeros(1, dtype=torch.int64, device=parts.device), capacity)
        shape = key_shape(parts, rows, capacity)
        self.blocks = [BlockKeyValues(self.place, shape, parts) for _ in range(parts.num_layers)]

    def begin(self, prompts: DynamicCache, row_of: Tensor) -> None:
        """Takes the keys and values of U prompt rows [U, heads, S, size], spread over R rows by `row_of` [R]."""
        for block, prompt in zip(self.blocks, prompts.layers, strict=True):
            length = prompt.keys.shape[2]
            for mine, given in ((block.keys, prompt.keys), (block.values, prompt.values)):
                mine[:, :, :length] = given[row_of]
                mine[:, :, length:] = 0  # what is masked must be finite
        self.place.position.fill_(length)

    def update(self, keys: Tensor, values: Tensor, block: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As `BlockKeyValues.update`, of the block with this index."""
        return self.blocks[block].update(keys, values)


class Backbone:
    """Runs prompts, then one token at a time, for R rows of at most `capacity` positions.

    Raises:
        ValueError: the model's attention takes no mask of its caller's making.
    """

    def __init__(self, parts: JanusParts, rows: int, capacity: int) -> None:
        attention = parts.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attention!r}")
        self._parts = parts
        self._cache = KeyValues(parts, rows, capacity)
        # Added to the attention scores: nothing on the padding and on what is not written yet.
        self._mask = torch.zeros(rows, 1, 1, capacity, dtype=parts.dtype, device=parts.device)
        # A token's position counts the attended tokens before it, so that padding moves nothing.
        self._positions = torch.zeros(rows, 1, dtype=torch.int64, device=parts.device)
        self._takes_cache_position = "cache_position" in inspect.signature(parts.backbone.forward).parameters

    def begin(self, prompts: PromptBatch) -> None:
        """Runs the U distinct rows of the prompts; what was before is forgotten."""
        cache = DynamicCache()
        attended, row_of = prompts.attended, prompts.row_of
        self._parts.backbone(
            inputs_embeds=self._parts.embed_text(prompts.token_ids),
            attention_mask=attended.long(),
            position_ids=(attended.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        self._cache.begin(cache, row_of)
        self._mask.fill_(torch.finfo(self._mask.dtype).min)
        self._mask[:, 0, 0, : attended.shape[1]].masked_fill_(attended[row_of], 0)
        self._positions.copy_(attended.sum(-1)[row_of].unsqueeze(1))

    @property
    def key_value_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(block.keys.nbytes + block.values.nbytes for block in self._cache.blocks)

    def rewind(self) -> None:
        """The next token is written to the first position."""
        self._cache.place.position.zero_()

    def step(self, embeddings: Tensor, visible: int) -> None:
        """Runs one token: [R, D] embeddings of the codes just drawn. Nothing in it waits for the device.

        Args:
            visible: positions that attention looks at, a multiple of `VISIBLE_MULTIPLE`.
        """
        place = self._cache.place
        place.visible = visible
        self._mask.index_fill_(3, place.position, 0)
        arguments = {"cache_position": place.position} if self._takes_cache_position else {}  # transformers 4
        self._parts.backbone(
            inputs_embeds=embeddings.unsqueeze(1),
            attention_mask=self._mask[..., :visible],
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            **arguments,
        )
        place.position += 1
        self._positions += 1


def key_shape(parts: JanusParts, rows: int, positions: int) -> tuple[int, int, int, int]:
    """Of the keys of one block, and of its values: [rows, heads, positions, size]."""
    config = parts.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return rows, config.num_key_value_heads, positions, size
