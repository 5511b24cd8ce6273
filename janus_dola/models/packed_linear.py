"""A Linear whose weight lies packed in 16 bits, for a CPU."""

from typing import Any

import torch
from torch import Tensor, nn

from janus_dola.kernels.packed import Packed


def sample_of(weight: Tensor) -> Tensor:
    """Returns about 32 numbers of a weight, spread over it, [n] float32: other weights have others."""
    return weight.detach().reshape(-1)[:: max(1, weight.numel() // 31)].float()


class PackedLinear(nn.Module):
    """A Linear whose weight lies packed, below or above the weights of others that take the same input."""

    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None, outputs: slice, sample: Tensor) -> None:
        super().__init__()
        self.sample = sample  # of the weight, see `sample_of`
        self.packed, self._outputs = packed, outputs
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the product: [..., K] to [..., O], in the dtype of `packed`."""
        product = self.packed(x.flatten(0, -2))[:, self._outputs].unflatten(0, x.shape[:-1])
        return product if self.bias is None else product + self.bias

    def unpacked(self) -> nn.Linear:
        """Returns a plain Linear with the same weight, in its dtype."""
        weights = self.state_dict()
        outputs, inputs = weights["weight"].shape
        linear = nn.Linear(inputs, outputs, bias=self.bias is not None, device="meta")
        linear.load_state_dict(weights, assign=True)
        return linear.to(self.packed.stored_dtype).requires_grad_(False)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Saves a plain Linear's tensors, so that what is saved is a checkpoint."""
        destination[prefix + "weight"] = self.packed.unpack()[self._outputs].clone()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias


def pack(packing: type[Packed], parent: nn.Module, *names: str) -> None:
    """Replaces linears that take the same input by packed ones; leaves them alone where an adapter has replaced one."""
    linears: list[Any] = [parent.get_submodule(name) for name in names]
    if not all(type(linear) is nn.Linear for linear in linears):
        return
    packed = packing(torch.cat([linear.weight for linear in linears]))
    first = 0
    for name, linear in zip(names, linears, strict=True):
        end = first + len(linear.weight)
        sample = sample_of(linear.weight.to(packing.stored_dtype))
        setattr(parent, name, PackedLinear(packed, linear.bias, slice(first, end), sample))
        first = end


def unpack(model: nn.Module) -> None:
    """Puts plain linears in the place of packed ones."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, child.unpacked())
