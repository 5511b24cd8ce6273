"""What the rest of the package asks of an image model, whichever family it belongs to: an adapter answers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from janus_dola.kernels.types import Head
from janus_dola.models.packed_linear import PackedLinear

BEGIN_OF_IMAGE = "<begin_of_image>"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens an image prompt is framed with."""

    bos: int
    begin_of_image: int
    pad: int  # stands in for the words of the unconditional prompt


class PromptRows(NamedTuple):
    """The token ids that an image is drawn from: two rows, which may differ in length."""

    conditional: list[int]  # of the prompt
    unconditional: list[int]  # what guidance leads away from


class Prompts(Protocol):
    """Makes token ids of words, with one tokenizer."""

    def ids(self, prompt: str) -> list[int]:
        """The row of a prompt, up to where the first code is drawn.

        Raises:
            ValueError: the prompt, or the tokenizer, cannot be used.
        """

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """The two rows of an image, which may differ in length.

        Args:
            ids: of its prompt.
            negative: of a negative prompt; None is the model's own unconditional row.
        """


@dataclass(frozen=True)
class Raster:
    """Where the codes of an image stand in its sequence: row by row, with a fixed token, or none, between two rows."""

    rows: int
    columns: int
    line_end: int | None = None  # row of the code table that the fixed token is fed back as

    @property
    def image_tokens(self) -> int:
        """T, the codes of an image."""
        return self.rows * self.columns

    @property
    def stride(self) -> int:
        """Positions from one code to that below it."""
        return self.columns + (self.line_end is not None)

    @property
    def length(self) -> int:
        """T', the positions of an image: its codes and the fixed tokens among them."""
        return self.rows * self.stride - (self.line_end is not None)

    def with_line_ends(self, places: Tensor, codes: Tensor) -> Tensor:
        """What stands at these places of the sequence, where these codes do unless a line ends there."""
        if self.line_end is None:
            return codes
        return codes.masked_fill(places % self.stride == self.columns, self.line_end)

    def sequence(self, codes: Tensor) -> Tensor:
        """[T] int64 codes to [T'], with the fixed tokens between rows."""
        if self.line_end is None:
            return codes
        return F.pad(codes.view(self.rows, self.columns), (0, 1), value=self.line_end).flatten()[:-1]

    @cached_property
    def places(self) -> Tensor:
        """[T] int64, where in the sequence the codes are."""
        return (torch.arange(self.rows).unsqueeze(1) * self.stride + torch.arange(self.columns)).flatten()


@dataclass(frozen=True)
class Vision:
    """How a model reads pictures, which it does from other features than it draws by."""

    text_model: PreTrainedModel  # with the text head, and transformers' `generate`
    see: Callable[[Tensor], Tensor]  # [n, 3, H, W] pixels to [n, T, D], what stands for images in a text


@dataclass(frozen=True)
class ImageModel:
    """An image model taken apart. Letters: R rows, B images, T image tokens, D hidden size."""

    family: str
    config: PretrainedConfig  # of the language model
    backbone: nn.Module  # the decoder without its text head; called with inputs_embeds
    blocks: nn.ModuleList
    final_norm: LlamaRMSNorm
    embed_text: nn.Module  # [R, S] ids to [R, S, D]
    image_head: tuple[nn.Module, ...]  # the modules that make logits of codes
    head_name: str  # of what holds them, in the model
    read_head: Callable[[], Head]  # the weights of the head stage, as they are now
    code_modules: tuple[nn.Module, ...]  # that embed codes
    embed_codes: Callable[[Tensor], Tensor]  # [R] rows of the code table to [R, D], what they are fed back as
    # all that `embed_codes` computes with; None where it is not only that
    code_weights: Callable[[], list[Tensor] | None]
    to_pixels: Callable[[Tensor], Tensor]  # [B, T] codes to [B, 3, H, W] pixels, in [-1, 1] but for overshoot
    raster: Raster
    image_size: tuple[int, int]  # width and height, in pixels
    prompts: Callable[[PreTrainedTokenizerBase], Prompts]
    vision: Vision | None = None  # where it answers questions about pictures

    @property
    def head(self) -> Head:
        """The weights of the head stage, as they are now.

        Raises:
            ValueError: a linear has no plain weight, such as with an adapter or in 8 bits.
        """
        return self.read_head()

    @property
    def image_tokens(self) -> int:
        """T, the codes of an image."""
        return self.raster.image_tokens

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

    @property
    def stored_as(self) -> str:
        """The name of `stored_dtype`, as recipes and runs have it: "bfloat16"."""
        return str(self.stored_dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Family:
    """A kind of model that there is an adapter for."""

    recognises: Callable[[PreTrainedModel], bool]  # whether a model has this family's modules
    adapt: Callable[[Any], ImageModel]
