"""Reads the weights that a step computes with, as they are when drawing begins.

Nothing is held twice: where matrices are multiplied as one, the modules' own parameters become views of the one, so that an
update in place is seen. What was copied or computed from parameters is compared with them, and made anew where they changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from janus_dola.kernels.block_torch import BlockWeights, Matrix, Norm, Product, Rotary
from janus_dola.kernels.packed import PackedHalf
from janus_dola.kernels.types import Head
from janus_dola.models.model import ImageModel
from janus_dola.models.packed_linear import PackedLinear

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
# Hooks of these modules only look at what a block takes in: transformers' records outputs for whoever asks for them, ours
# hidden states while another thread answers a question.
_ONLY_LOOK = ("transformers.utils.output_capturing", "janus_dola.text.hooks")
_MEMBERS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


@dataclass(frozen=True)
class Modules:
    """The product with linears that have no plain weight (adapters, 8 bits): they are called one after the other."""

    modules: tuple[nn.Module, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns the product: [N, K] to [N, O], the outputs side by side."""
        return torch.cat([module(rows) for module in self.modules], -1)

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """Returns residual [N, O] + the product of rows [N, K]."""
        return residual + self(rows)


@dataclass(frozen=True)
class Weights:
    """What a step computes with. Letters: D hidden size, V codes."""

    blocks: tuple[BlockWeights, ...]
    rotary: Rotary
    head: Head
    code_table: Tensor  # [V, D] embeddings of codes; one row more where a token ends lines

    def lie_where(self, others: "Weights") -> bool:
        """Tells whether all tensors have the addresses of the others', as a captured graph demands."""
        return _addresses(self) == _addresses(others)


class WeightReader:
    """Reads a model's weights each time drawing begins."""

    def __init__(self, image_model: ImageModel) -> None:
        self._image_model = image_model
        # Both tables, and the tensors that each was computed from.
        self._code_table: tuple[Tensor, list[Tensor]] | None = None
        self._rotary: tuple[Rotary, list[Tensor]] | None = None

    @torch.no_grad()
    def read(self) -> Weights:
        """Returns the weights as they are now. Fuses the model's matrices that are multiplied as one (`fuse_in_place`).

        A part of the model that a step written out on tensors would leave out is a ValueError.
        """
        image_model = self._image_model
        modules = (image_model.backbone, *image_model.image_head, *image_model.code_modules)
        if any(weight.is_meta for module in modules for weight in module.parameters()):
            raise ValueError("model must be on one device as a whole, got weights that are offloaded (device 'meta')")
        blocks = tuple(_block_weights(block, index) for index, block in enumerate(image_model.blocks))
        return Weights(blocks, self._rotary_table(), image_model.head, self._table())

    def _rotary_table(self) -> Rotary:
        """Computes the table with transformers' own module, which knows every kind of scaling."""
        image_model = self._image_model
        module: Any = image_model.backbone.rotary_emb
        if module.rope_type not in _ROPE_TYPES:
            raise ValueError(f"rope_type must be one of {list(_ROPE_TYPES)}, got {module.rope_type!r}")
        like = torch.empty(0, dtype=image_model.dtype, device=image_model.device)
        now = [module.inv_freq * module.attention_scaling, like]
        if self._rotary is None or not _equal(self._rotary[1], now):
            positions = torch.arange(image_model.config.max_position_embeddings, device=image_model.device).unsqueeze(0)
            cos, sin = module(like, positions)
            self._rotary = Rotary.of(cos[0], sin[0]), now
        return self._rotary[0]

    def _table(self) -> Tensor:
        """Embeds every code, then the token that ends a line.

        The weights behind it are compared by value: an update through `.data` leaves no other trace.
        """
        image_model = self._image_model
        now = image_model.code_weights()
        if self._code_table is None or now is None or not _equal(self._code_table[1], now):
            rows = image_model.head.num_codes + (image_model.raster.line_end is not None)
            table = image_model.embed_codes(torch.arange(rows, device=image_model.device)).contiguous()
            self._code_table = table, [weight.detach().clone() for weight in now or []]
        return self._code_table[0]


def _equal(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    return len(before) == len(now) and all(
        (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
        for a, b in zip(before, now, strict=True)
    )


def _addresses(thing: object) -> list[object]:
    if isinstance(thing, Tensor):
        return [thing.data_ptr(), thing.dtype, *thing.shape]
    if isinstance(thing, tuple):
        return [address for each in thing for address in _addresses(each)]
    if hasattr(thing, "__dataclass_fields__"):
        return [address for field in fields(thing) if field.init for address in _addresses(getattr(thing, field.name))]  # type: ignore[arg-type]
    return [thing]


def _block_weights(block: Any, index: int) -> BlockWeights:
    for name, expected in _MEMBERS.items():
        module = block.get_submodule(name)
        children = {child for child, submodule in module.named_children() if not isinstance(submodule, nn.Dropout)}
        members = children | {parameter for parameter, _ in module.named_parameters(recurse=False)}
        if members != expected:
            raise ValueError(
                f"block {index} of the language model must be a Llama's, with {sorted(expected)} in "
                f"{name or 'it'!r}, got {sorted(members)}"
            )
    attention, mlp = block.self_attn, block.mlp
    norms = block.input_layernorm, block.post_attention_layernorm
    for module in (block, attention, mlp, *norms):
        # What changes results without changing weights would be left out in silence.
        if any(getattr(hook, "__module__", "") not in _ONLY_LOOK for hook in _hooks(module)) or _has_own_forward(
            module
        ):
            raise ValueError(
                f"block {index} of the language model must have no forward hooks and no forward of its own, "
                f"got a changed {type(module).__name__}; remove what was put there before drawing"
            )
    x = torch.linspace(-3, 3, 13)
    if not torch.allclose(mlp.act_fn(x), nn.functional.silu(x), atol=1e-6):
        raise ValueError(f"hidden_act of the language model must be silu, got {mlp.act_fn}")
    heads = attention.config.num_attention_heads
    return BlockWeights(
        attention_norm=Norm(norms[0].weight.detach(), norms[0].variance_epsilon),
        qkv=_product(attention.q_proj, attention.k_proj, attention.v_proj),
        output=_product(attention.o_proj),
        mlp_norm=Norm(norms[1].weight.detach(), norms[1].variance_epsilon),
        gate_up=_product(mlp.gate_proj, mlp.up_proj),
        down=_product(mlp.down_proj),
        query_heads=heads,
        key_value_heads=heads // attention.num_key_value_groups,
        head_size=attention.head_dim,
        scaling=attention.scaling,
    )


def weight_of(linear: Any) -> Tensor | PackedHalf:
    """Returns the weight that a Linear in the image head multiplies with, as it lies in memory; else raises ValueError."""
    if isinstance(linear, PackedLinear):
        return linear.packed
    if not _is_plain(linear):
        raise ValueError(
            f"the image head must be made of plain linears, got {type(linear).__module__}.{type(linear).__name__}; "
            "merge adapters into their weights first (merge_and_unload)"
        )
    return linear.weight.detach()


def _is_plain(linear: nn.Module) -> bool:
    """Tells whether a module is a Linear that its weights describe: no adapter, 8 bits, hooks or forward of its own."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter  # weights in 8 bits have classes of their own
        and not _hooks(linear)
        and not _has_own_forward(linear)
    )


def is_as_published(module: nn.Module) -> bool:
    """Tells whether a module computes what its class does, with its own weights: no adapter and no hook changes it."""
    return all(
        type(each).__module__.startswith(("torch.nn", "transformers.", "janus."))  # not an adapter's
        and not _hooks(each)
        for each in module.modules()
    )


def _hooks(module: nn.Module) -> list[Callable]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _has_own_forward(module: nn.Module) -> bool:
    """Tells whether a module has another forward than its class; transformers 4 leaves its class's own behind."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _product(*linears: Any) -> Product:
    biases = [linear.bias for linear in linears if getattr(linear, "bias", None) is not None]
    if len(biases) in (0, len(linears)):
        if isinstance(linears[0], PackedLinear):  # packed together with the others
            return Matrix(linears[0].packed, torch.cat(biases) if biases else None)
        if all(map(_is_plain, linears)):
            weights = [linear.weight for linear in linears]
            return Matrix(fuse_in_place(weights), fuse_in_place(biases) if biases else None)
    return Modules(linears)


def fuse_in_place(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Changes the user's module: its parameters [O_i, ...] become views into one tensor [O, ...], which is returned.

    Where they follow each other in memory already, nothing changes.
    """
    first = parameters[0]
    end = first.data_ptr()
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or parameter.data_ptr() != end or not parameter.is_contiguous():
            break
        end += parameter.nbytes
    else:
        outputs = sum(len(parameter) for parameter in parameters)
        return first.detach().as_strided((outputs, *first.shape[1:]), first.stride())
    fused = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, fused.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = part
    return fused
