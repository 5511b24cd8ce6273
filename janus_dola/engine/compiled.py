"""The blocks of a model under torch.compile, which fuses norms, rotations and activations with their neighbours."""

from collections import OrderedDict
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
    hooks = {child: child._forward_hooks for block in parts.blocks for child in block.children()}
    for index, block in enumerate(parts.blocks):
        block.forward = _forward(block, index)  # hides the method
    for child, found in hooks.items():
        child._forward_hooks = OrderedDict((key, hook) for key, hook in found.items() if not _captures(hook))
    try:
        yield
    finally:
        for block in parts.blocks:
            del block.forward
        for child, found in hooks.items():
            child._forward_hooks = found


def _captures(hook: Callable[..., Any]) -> bool:
    """Whether transformers put it there to record outputs when asked to. Nobody asks here, and it cannot be compiled."""
    return hook.__module__ == "transformers.utils.output_capturing"


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
