"""What a module of the user's model computes: with its own weights alone, or with something that was added to it."""

from typing import Any

from torch import Tensor, nn

from janus_dola.kernels.packed import PackedHalf
from janus_dola.models.packed_linear import PackedLinear


def weight_of(linear: Any) -> Tensor | PackedHalf:
    """What a Linear of the image head multiplies with, as it lies in memory.

    Raises:
        ValueError: it has no plain weight.
    """
    if not is_plain(linear) and not isinstance(linear, PackedLinear):
        raise ValueError(
            f"the image head must be made of plain linears, got {type(linear).__module__}.{type(linear).__name__}; "
            "merge adapters into their weights first (merge_and_unload)"
        )
    return linear.packed if isinstance(linear, PackedLinear) else linear.weight.detach()


def is_plain(linear: nn.Module) -> bool:
    """Whether a module is a Linear that its weights describe: no adapter, no 8 bits, no hooks, no forward of its own."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter  # those of 8 bits have classes of their own
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and not has_own_forward(linear)
    )


def is_as_published(module: nn.Module) -> bool:
    """Whether a module computes what its class does, with its own weights: no adapter and no hook has a hand in it."""
    return all(
        type(each).__module__.startswith(("torch.nn", "transformers.", "janus."))  # not an adapter's
        and not each._forward_hooks
        and not each._forward_pre_hooks
        for each in module.modules()
    )


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module has another forward than its class; transformers 4 leaves that of its class behind."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward
