"""float16 on a CPU: the large matrices of the language model and the image head packed, everything else in float32."""

from typing import Any

import torch
from torch import Tensor, nn

from janus_dola.kernels.packed import PackedHalf, can_pack


class PackedLinear(nn.Module):
    """A Linear whose weight lies packed, with those of others that take the same input below it or above."""

    bias: Tensor | None

    def __init__(self, packed: PackedHalf, bias: Tensor | None, first: int, outputs: int) -> None:
        super().__init__()
        self.packed, self._outputs = packed, slice(first, first + outputs)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] float32 to [..., O]."""
        product = self.packed(x.flatten(0, -2))[:, self._outputs].unflatten(0, x.shape[:-1])
        return product if self.bias is None else product + self.bias

    def unpacked(self) -> nn.Linear:
        """As a plain Linear, in float16."""
        weight = self.packed.unpack()[self._outputs].clone()
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, bias=self.bias is not None, dtype=weight.dtype, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(weight.dtype), requires_grad=False)
        return linear

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """As a Linear's, so that what is saved is a checkpoint."""
        destination[prefix + "weight"] = self.packed.unpack()[self._outputs]
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias


def pack_for_cpu(model: Any) -> None:
    """Packs a Janus of transformers' class in place, if it lies in float16 on a CPU whose torch can.

    Weights are held once: as each is packed, the plain one goes. Elsewhere (ARM) the model stays as it is, and its products
    are torch's own of float16.

    Raises:
        ValueError: a weight is not finite in float16.
    """
    if model.device.type != "cpu" or model.dtype != torch.float16 or not can_pack():
        return
    for block in model.model.language_model.layers:
        _pack(block.self_attn, "q_proj", "k_proj", "v_proj")
        _pack(block.self_attn, "o_proj")
        _pack(block.mlp, "gate_proj", "up_proj")
        _pack(block.mlp, "down_proj")
    _pack(model.model.generation_head, "proj_out")
    _pack(model.model.generation_head, "vision_head")
    if model.lm_head.weight is not model.get_input_embeddings().weight:
        _pack(model, "lm_head")
    model.float()


def unpack(model: nn.Module) -> None:
    """Puts plain linears in the place of packed ones."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, child.unpacked())


def _pack(parent: nn.Module, *names: str) -> None:
    linears: list[Any] = [parent.get_submodule(name) for name in names]
    if not all(type(linear) is nn.Linear for linear in linears):  # an adapter's, which were added since loading
        return
    packed = PackedHalf(torch.cat([linear.weight for linear in linears]))
    first = 0
    for name, linear in zip(names, linears, strict=True):
        outputs = len(linear.weight)
        setattr(parent, name, PackedLinear(packed, linear.bias, first, outputs))
        first += outputs
