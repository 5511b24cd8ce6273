"""The language model with static keys and values, fed with embeddings, whose hidden states the taps read.

Letters: N blocks, R rows (two an image), U distinct rows, S prompt tokens, T image tokens, D hidden size.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from janus_dola.models.parts import JanusParts
from janus_dola.prompt import PromptBatch

# Attention looks at a multiple of so many positions: few different shapes, little reading of what is not written yet.
VISIBLE_MULTIPLE = 64


class KeyValues:
    """Keys and values of all blocks in place: what transformers' attention calls its cache.

    The next position is a tensor on the device, so that a step is the same sequence of kernels each time.
    """

    def __init__(self, prompts: DynamicCache, row_of: Tensor, length: int, capacity: int) -> None:
        """Takes the keys and values of U prompt rows, `length` positions, spread over R rows, `row_of` [R]."""

        def spread(prompt: Tensor) -> Tensor:  # [U, heads, S, size] to [R, heads, capacity, size]
            found = prompt.new_zeros(len(row_of), prompt.shape[1], capacity, prompt.shape[3])
            found[:, :, :length] = prompt[row_of]
            return found

        self.keys = [spread(layer.keys) for layer in prompts.layers]
        self.values = [spread(layer.values) for layer in prompts.layers]
        self.position = torch.full((1,), length, device=row_of.device)  # where the next token is written
        self.visible = capacity  # positions that attention reads

    def update(self, keys: Tensor, values: Tensor, block: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes one token's keys and values [R, heads, 1, size] and gives back those of all visible positions."""
        self.keys[block].index_copy_(2, self.position, keys)
        self.values[block].index_copy_(2, self.position, values)
        return self.keys[block][:, :, : self.visible], self.values[block][:, :, : self.visible]


class Backbone:
    """Runs prompts, then one token at a time.

    Raises:
        ValueError: the model's attention takes no mask of its caller's making.
    """

    def __init__(self, parts: JanusParts, prompts: PromptBatch, steps: int) -> None:
        attention = parts.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attention!r}")
        self._parts = parts
        self._prompts = prompts
        rows, self._length = len(prompts.row_of), prompts.token_ids.shape[1]
        capacity = _up_to_multiple(self._length + steps)
        self._written = self._length
        # Added to the attention scores: nothing on the padding and on what is not written yet.
        nothing = torch.finfo(parts.dtype).min
        self._mask = torch.full((rows, 1, 1, capacity), nothing, dtype=parts.dtype, device=parts.device)
        self._mask[:, 0, 0, : self._length].masked_fill_(prompts.attended[prompts.row_of], 0)
        # A token's position counts the attended tokens before it, so that padding moves nothing.
        self._positions = prompts.attended.sum(-1)[prompts.row_of].unsqueeze(1)
        self._capacity = capacity
        self._takes_cache_position = "cache_position" in inspect.signature(parts.backbone.forward).parameters

    def prefill(self) -> None:
        """Runs the U distinct rows of the prompts."""
        cache = DynamicCache()
        attended = self._prompts.attended
        self._parts.backbone(
            inputs_embeds=self._parts.embed_text(self._prompts.token_ids),
            attention_mask=attended.long(),
            position_ids=(attended.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        self._cache = KeyValues(cache, self._prompts.row_of, self._length, self._capacity)

    def step(self, embeddings: Tensor) -> None:
        """Runs one token: [R, D] embeddings of the codes just drawn. Nothing in it waits for the device."""
        self._written += 1
        self._cache.visible = _up_to_multiple(self._written)
        self._mask.index_fill_(3, self._cache.position, 0)
        arguments = {"cache_position": self._cache.position} if self._takes_cache_position else {}  # transformers 4
        self._parts.backbone(
            inputs_embeds=embeddings.unsqueeze(1),
            attention_mask=self._mask[..., : self._cache.visible],
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            **arguments,
        )
        self._cache.position += 1
        self._positions += 1


def _up_to_multiple(length: int) -> int:
    return -(-length // VISIBLE_MULTIPLE) * VISIBLE_MULTIPLE
