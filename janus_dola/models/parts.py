"""Where the pieces of a Janus model are, whichever of the two families it belongs to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from janus_dola.kernels.packed import PackedHalf
from janus_dola.kernels.types import Head
from janus_dola.models.pack import PackedLinear

BEGIN_OF_IMAGE = "<begin_of_image>"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens an image prompt is framed with."""

    bos: int
    begin_of_image: int
    pad: int  # stands in for the words of the unconditional prompt


@dataclass(frozen=True)
class JanusParts:
    """A Janus model taken apart. Letters: R rows, B images, T image tokens, D hidden size.

    Raises:
        ValueError: the activation of the image head is not the exact GELU, the only one that Janus models use.
    """

    family: str
    config: PretrainedConfig  # of the language model
    backbone: nn.Module  # the decoder without its text head; called with inputs_embeds
    blocks: nn.ModuleList
    final_norm: LlamaRMSNorm
    image_head: tuple[nn.Linear | PackedLinear, nn.Module, nn.Linear | PackedLinear]  # Linear, activation, Linear
    embed_text: nn.Module  # [R, S] ids to [R, S, D]
    code_modules: tuple[nn.Module, nn.Module]  # applied to codes one after the other: embedding, aligner
    decode_codes: Callable[[Tensor], Tensor]  # [B, T] codes to [B, 3, H, W] pixels, in [-1, 1] but for overshoot
    image_tokens: int  # T
    image_size: int  # H = W, in pixels
    special_tokens: Callable[[PreTrainedTokenizerBase], SpecialTokens]

    def __post_init__(self) -> None:
        x, activation = torch.linspace(-3, 3, 13), self.image_head[1]
        if not torch.allclose(activation(x), nn.functional.gelu(x), atol=1e-6):
            raise ValueError(f"the image head's activation must be the exact GELU, got {activation}")

    @property
    def head(self) -> Head:
        """The weights of the early-exit stage, as they are now.

        Raises:
            ValueError: one of the linears has no plain weight, such as with an adapter or in 8 bits.
        """
        projection: Any = self.image_head[0]
        codes: Any = self.image_head[2]
        for linear in (projection, codes):
            if not is_plain(linear) and not isinstance(linear, PackedLinear):
                raise ValueError(
                    f"the image head must be made of plain linears, got {type(linear).__module__}.{type(linear).__name__}; "
                    "merge adapters into their weights first (merge_and_unload)"
                )
        return Head(
            norm_weight=self.final_norm.weight.detach(),
            norm_eps=self.final_norm.variance_epsilon,
            code_weight=weight_of(codes),
            code_bias=codes.bias.detach(),
            proj_weight=weight_of(projection),
            proj_bias=projection.bias.detach(),
        )

    def embed_codes(self, codes: Tensor) -> Tensor:
        """[R] codes to [R, D], what they are fed back as."""
        for module in self.code_modules:
            codes = module(codes)
        return codes

    @property
    def num_layers(self) -> int:
        """N, the number of blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.final_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self.final_norm.weight.dtype

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the weights: that of the hidden states, but for packed ones."""
        return torch.float16 if isinstance(self.image_head[0], PackedLinear) else self.dtype


def weight_of(linear: nn.Linear | PackedLinear) -> Tensor | PackedHalf:
    """What a Linear multiplies with, as it lies in memory."""
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


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module has another forward than its class; transformers 4 leaves that of its class behind."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token.

    Raises:
        ValueError: the tokenizer does not have it.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"tokenizer must have the special token {token!r}; is it the tokenizer of a Janus model?")
    return found


def named_token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """The id the tokenizer gives to `bos_token` or `pad_token`.

    Raises:
        ValueError: the tokenizer has none.
    """
    found = getattr(tokenizer, f"{name}_id")
    if found is None:
        raise ValueError(f"tokenizer must have a {name}; is it the tokenizer of a Janus model?")
    return found
