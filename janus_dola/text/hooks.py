"""Hooks that take hidden states out of a running model, and put scores in place of its head's logits.

They lie on a copy of the modules (`eval_copy`), so nobody else who calls the model meets them.

A pass calls them in this order:

    block 1 ... block N, norm     before each that is read: `last_hidden_states` keeps what it takes in
    head                          before: `replace_head` hands it no rows, so that it multiplies nothing
                                  after:  `replace_head` puts out compute() in place of its logits
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from janus_dola.text.language_model import TextModel


@contextmanager
def last_hidden_states(text_model: TextModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Keeps the hidden states that passes have at their last position.

    Yields the latest pass' states, [R, D], by index as in Hugging Face's `hidden_states`: 0 is the embeddings, N the final
    block (before the norm).
    """
    kept: dict[int, Tensor] = {}
    modules = [*text_model.blocks, text_model.norm]  # layer j is what the module j takes in

    def keep(layer: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[layer] = (args[0] if args else kwargs["hidden_states"])[:, -1]

        return hook

    with ExitStack() as handles:
        for layer in layers:
            handles.enter_context(modules[layer].register_forward_pre_hook(keep(layer), with_kwargs=True))
        yield kept


@contextmanager
def replace_head(head: nn.Module, compute: Callable[[], Tensor]) -> Iterator[None]:
    """Replaces the head's output at the last position by `compute()`, [R, V], and skips its product."""
    with (
        head.register_forward_pre_hook(lambda _, args: args[0][:0]),
        head.register_forward_hook(lambda *_: compute()[:, None]),
    ):
        yield
