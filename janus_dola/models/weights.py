"""Reads the weights that a step computes with, where they lie, as they are when drawing begins.

Nothing is held twice, and reading changes nothing in the model. What was computed from parameters is compared with them, and
made anew where they changed.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from janus_dola.kernels.block_torch import Beside, BlockWeights, Matrix, Norm, Rotary
from janus_dola.kernels.packed import Packed
from janus_dola.kernels.types import Head
from janus_dola.models.contexts import undisturbed
from janus_dola.models.eval_copy import eval_copy, in_eval_mode
from janus_dola.models.model import ImageModel
from janus_dola.models.packed_linear import PackedLinear, sample_of
from janus_dola.models.soundness import check_sound

_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
# Hooks of these modules only look at what a block gives: transformers records outputs for whoever asks for them.
_ONLY_LOOK = ("transformers.utils.output_capturing",)
_AS_ONE = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}
_LLAMA = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
_NORMS_AFTER = ("post_self_attn_layernorm", "post_mlp_layernorm")
_GLM = {
    "": _LLAMA[""].union(_NORMS_AFTER),
    "self_attn": _LLAMA["self_attn"],
    "mlp": {"gate_up_proj", "down_proj", "activation_fn"},
}


@dataclass(frozen=True)
class CalledModule:
    """The product with a linear that has no plain weight (adapters, 8 bits): the module is called."""

    module: nn.Module

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns the product: [N, K] to [N, O]."""
        return self.module(rows)

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


def fingerprint(image_model: ImageModel, dtype: torch.dtype | None = None) -> str:
    """Returns 8 hex digits that weights have in common which draw the same codes; training and rounding change them.

    They stand for a sample of each weight, the same on any device and however it is stored. Weights in 8 bits are left out.
    With a dtype they are those of the weights rounded to it.
    """
    modules = (image_model.embed_text, *image_model.blocks, image_model.final_norm, *image_model.image_head)
    with undisturbed():
        samples = [sample for module in modules for each in module.modules() for sample in _samples(each)]
        samples += map(sample_of, image_model.code_weights() or ())
        numbers = torch.cat(samples)
        return f"{zlib.crc32(numbers.to(dtype or numbers.dtype).float().cpu().numpy().tobytes()):08x}"


def _samples(module: nn.Module) -> Iterator[Tensor]:
    if isinstance(module, PackedLinear):
        yield module.sample
    packed_bias = [module.bias] if isinstance(module, PackedLinear) and module.bias is not None else []
    for weight in (*module.parameters(recurse=False), *packed_bias):
        if type(weight) in (Tensor, nn.Parameter) and not weight.is_meta:
            yield sample_of(weight)


class WeightReader:
    """Reads a model's weights each time drawing begins."""

    def __init__(self, image_model: ImageModel) -> None:
        self._image_model = image_model
        # Both tables, and the tensors that each was computed from.
        self._code_table: tuple[Tensor, list[Tensor]] | None = None
        self._rotary: tuple[Rotary, list[Tensor]] | None = None
        # What `lay_as_one` laid, by block and name, and the addresses in it, where the model's tensors must still lie.
        self._laid: dict[tuple[int, str], tuple[Matrix, list[object]]] = {}

    @undisturbed()
    def lay_as_one(self) -> None:
        """Moves weights that are multiplied as one beside each other in memory: of a model that was loaded here, no other.

        Each keeps a storage of its own, so that whoever saves, shares or trains them notices nothing.
        """
        if self._image_model.device.type not in ("cpu", "cuda"):
            return
        for index, block in enumerate(self._image_model.blocks):
            for name in _AS_ONE:
                linears = _linears(block, name)
                biases = [linear.bias for linear in linears if linear.bias is not None]
                if len(linears) > 1 and all(map(_is_plain, linears)) and len(biases) in (0, len(linears)):
                    whole = Matrix(_lay([linear.weight for linear in linears]), _lay(biases) if biases else None)
                    self._laid[index, name] = whole, _addresses(tuple(map(_product, linears)))
        if self._image_model.device.type == "cuda":
            torch.cuda.empty_cache()  # where the weights lay before: blocks too small to be laid into

    def read(self) -> Weights:
        """Returns the weights as they are now.

        A part of the model that a step written out on tensors would leave out is a ValueError.
        """
        image_model = self._image_model
        check_sound(image_model.modules)
        with undisturbed(image_model.device):
            rotary = self._rotary_table()
            rotated = rotary.cos.shape[1]
            blocks = tuple(self._block(block, index, rotated) for index, block in enumerate(image_model.blocks))
            weights = Weights(blocks, rotary, image_model.head, self._table())
        embeddings = getattr(image_model.embed_text, "weight", ())
        dtypes = {image_model.dtype, *_dtypes((blocks, weights.code_table, embeddings))}
        if len(dtypes) > 1:
            raise ValueError(
                f"blocks and embeddings of the model must have one dtype, got {', '.join(sorted(map(str, dtypes)))}: "
                "give them one with model.to(dtype)"
            )
        return weights

    def _block(self, block: Any, index: int, rotated: int) -> BlockWeights:
        _check_block(block, index)
        attention, mlp = block.self_attn, block.mlp
        before_attention, before_mlp, *after = (
            Norm(norm.weight.detach(), norm.variance_epsilon) for norm in _norms(block)
        )
        heads = attention.config.num_attention_heads
        return BlockWeights(
            attention_norm=before_attention,
            qkv=self._beside(block, index, "qkv"),
            output=_product(attention.o_proj),
            mlp_norm=before_mlp,
            gate_up=self._beside(block, index, "gate_up"),
            down=_product(mlp.down_proj),
            query_heads=heads,
            key_value_heads=heads // attention.num_key_value_groups,
            head_size=attention.head_dim,
            scaling=attention.scaling,
            rotated=None if rotated == attention.head_dim else rotated,
            attention_norm_after=after[0] if after else None,
            mlp_norm_after=after[1] if after else None,
        )

    def _beside(self, block: Any, index: int, name: str) -> Beside:
        linears = _linears(block, name)
        if isinstance(linears[0], PackedLinear):  # packed together with the others
            biases = [linear.bias for linear in linears if linear.bias is not None]
            whole = Matrix(linears[0].packed, torch.cat(biases) if biases else None)
            return Beside(tuple(linears), whole if len(biases) in (0, len(linears)) else None)
        products = tuple(map(_product, linears))
        if len(products) == 1:  # one Linear for all
            return Beside(products, products[0])
        laid = self._laid.get((index, name))
        if laid is not None and _addresses(products) == laid[1]:
            return Beside(products, laid[0])
        self._laid.pop((index, name), None)  # nobody else needs that memory
        return Beside(products)

    def _rotary_table(self) -> Rotary:
        """Computes the table with transformers' own module, which knows every kind of scaling."""
        image_model = self._image_model
        module: Any = image_model.backbone.rotary_emb
        if module.rope_type not in _ROPE_TYPES:
            raise ValueError(f"rope_type must be one of {list(_ROPE_TYPES)}, got {module.rope_type!r}")
        like = torch.empty(0, dtype=image_model.dtype, device=image_model.device)
        now = [module.inv_freq * module.attention_scaling, like]
        if self._rotary is None or not _equal(self._rotary[1], now):
            length, image = image_model.config.max_position_embeddings, None
            positions = torch.arange(length, device=like.device).unsqueeze(0)
            if image_model.positions is not None:  # of a prompt they are the same on all axes
                image = length - image_model.positions.shape[1]
                before = positions[:, :image] - image
                positions = torch.cat([before.expand(3, -1), image_model.positions.to(like.device)], 1).unsqueeze(1)
            cos, sin = eval_copy(module)(like, positions)
            self._rotary = Rotary.of(cos[0], sin[0], image), now
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
        return [thing.data_ptr(), thing.dtype, thing.device, *thing.shape, *thing.stride()]
    if isinstance(thing, tuple):
        return [address for each in thing for address in _addresses(each)]
    if hasattr(thing, "__dataclass_fields__"):
        return [address for field in fields(thing) if field.init for address in _addresses(getattr(thing, field.name))]  # type: ignore[arg-type]
    return [thing]


def _dtypes(thing: object) -> set[torch.dtype]:
    """Collects the dtypes of all tensors in what a step computes with."""
    if isinstance(thing, Tensor | Packed):
        return {thing.dtype}
    inside = thing if isinstance(thing, tuple) else vars(thing).values() if is_dataclass(thing) else ()
    return {dtype for each in inside for dtype in _dtypes(each)}


def _norms(block: Any) -> list[Any]:
    """Returns a block's norms: before attention and MLP, then those behind both, where it has them."""
    after = [getattr(block, name) for name in _NORMS_AFTER if hasattr(block, name)]
    return [block.input_layernorm, block.post_attention_layernorm, *after]


def _check_block(block: Any, index: int) -> None:
    """Raises ValueError where a block is neither a Llama's nor a GLM's, or something changes what it computes."""
    kind, members_of_kind = ("GLM", _GLM) if hasattr(block, _NORMS_AFTER[0]) else ("Llama", _LLAMA)
    for name, expected in members_of_kind.items():
        module = block.get_submodule(name)
        children = {child for child, submodule in module.named_children() if not isinstance(submodule, nn.Dropout)}
        members = children | {parameter for parameter, _ in module.named_parameters(recurse=False)}
        if members != expected:
            raise ValueError(
                f"block {index} of the language model must be a {kind}'s, with {sorted(expected)} in "
                f"{name or 'it'!r}, got {sorted(members)}"
            )
    attention, mlp = block.self_attn, block.mlp
    for module in (block, attention, mlp, *_norms(block)):
        # What changes results without changing weights would be left out in silence.
        if any(getattr(hook, "__module__", "") not in _ONLY_LOOK for hook in _hooks(module)) or _has_own_forward(
            module
        ):
            raise ValueError(
                f"block {index} of the language model must have no forward hooks and no forward of its own, "
                f"got a changed {type(module).__name__}; remove what was put there before drawing"
            )
    x = torch.linspace(-3, 3, 13, dtype=torch.float32)
    activation = mlp.activation_fn if kind == "GLM" else mlp.act_fn
    if not torch.allclose(activation(x), nn.functional.silu(x), atol=1e-6):
        raise ValueError(f"hidden_act of the language model must be silu, got {activation}")


def _linears(block: Any, name: str) -> list[Any]:
    paths = ("mlp.gate_up_proj",) if name == "gate_up" and hasattr(block.mlp, "gate_up_proj") else _AS_ONE[name]
    return [block.get_submodule(path) for path in paths]


def _lay(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Lays parameters [O_i, ...] one behind the other in memory; returns all of it, [O, ...]."""
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = torch.from_dlpack(part)  # a tensor there whose storage is the part alone
    return whole


def weight_of(linear: Any) -> Tensor | Packed:
    """Returns the weight that a Linear in the image head multiplies with, as it lies in memory; else raises ValueError."""
    if isinstance(linear, PackedLinear):
        return linear.packed
    if not _is_plain(linear):
        raise ValueError(
            f"the image head must be made of plain linears, got {type(linear).__module__}.{type(linear).__name__}; "
            "merge adapters into their weights first (merge_and_unload)"
        )
    return linear.weight


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


def _product(linear: Any) -> Matrix | CalledModule:
    if isinstance(linear, PackedLinear):
        return Matrix(linear.packed, linear.bias)
    if not _is_plain(linear):
        return CalledModule(in_eval_mode(linear))
    return Matrix(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())
