"""The blocks of a model under torch.compile, which fuses norms, rotations and activations with their neighbours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from janus_dola.engine.backbone import BlockKeyValues, KeyValues
from janus_dola.models.parts import JanusParts


@contextmanager
def compiled_blocks(parts: JanusParts) -> Iterator[None]:
    """While open, the steps of a `Backbone` run compiled blocks; its prompts run as ever.

    All blocks share one compiled function: each is given the keys and values of its own block only, so that nothing in it
    depends on which block it is.
    """
    for index, block in enumerate(parts.blocks):
        block.forward = _forward(block, index)  # hides the method
    try:
        yield
    finally:
        for block in parts.blocks:
            del block.forward


def _forward(block: torch.nn.Module, index: int) -> Callable[..., Any]:
    plain, compiled = block.forward, _compiled(type(block).forward)

    def forward(hidden_states: Tensor, past_key_values: object, **arguments: Any) -> Any:
        if not isinstance(past_key_values, KeyValues):
            return plain(hidden_states, past_key_values=past_key_values, **arguments)
        own: BlockKeyValues = past_key_values.blocks[index]
        return compiled(block, hidden_states, past_key_values=own, **arguments)

    return forward


@cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward, fullgraph=True)
