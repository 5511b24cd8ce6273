"""Where the pieces of a Janus model are, whichever of the two families it belongs to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from janus_dola.kernels.types import Head

BEGIN_OF_IMAGE = "<begin_of_image>"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens an image prompt is framed with."""

    bos: int
    begin_of_image: int
    pad: int  # stands in for the words of the unconditional prompt


@dataclass(frozen=True)
class JanusParts:
    """A Janus model taken apart. Letters: R rows, B images, T image tokens, D hidden size."""

    family: str
    config: PretrainedConfig  # of the language model
    backbone: nn.Module  # the decoder without its text head; called with inputs_embeds
    blocks: nn.ModuleList
    final_norm: nn.Module
    head: Head
    embed_text: nn.Module  # [R, S] ids to [R, S, D]
    embed_codes: Callable[[Tensor], Tensor]  # [R] codes to [R, D]
    decode_codes: Callable[[Tensor], Tensor]  # [B, T] codes to [B, 3, H, W] pixels, in [-1, 1] but for overshoot
    image_tokens: int  # T
    image_size: int  # H = W, in pixels
    special_tokens: Callable[[PreTrainedTokenizerBase], SpecialTokens]

    @property
    def num_layers(self) -> int:
        """N, the number of blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.head.norm_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self.head.norm_weight.dtype


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


def head_of(final_norm: LlamaRMSNorm, projection: nn.Linear, activation: nn.Module, codes: nn.Linear) -> Head:
    """The weights of the early-exit stage.

    Raises:
        ValueError: the activation between the two linears is not the exact GELU, the only one Janus models use.
    """
    x = torch.linspace(-3, 3, 13)
    if not torch.allclose(activation(x), nn.functional.gelu(x), atol=1e-6):
        raise ValueError(f"the image head's activation must be the exact GELU, got {activation}")
    return Head(
        norm_weight=final_norm.weight.detach(),
        norm_eps=final_norm.variance_epsilon,
        code_weight=codes.weight.detach(),
        code_bias=codes.bias.detach(),
        proj_weight=projection.weight.detach(),
        proj_bias=projection.bias.detach(),
    )
