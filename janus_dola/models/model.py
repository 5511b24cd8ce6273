"""Defines `ImageModel`, which the engine draws with, and `Family`, which says how such models are read and taken apart."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from janus_dola.kernels.packed import Packed
from janus_dola.kernels.types import Head
from janus_dola.models.packed_linear import PackedLinear


class PromptRows(NamedTuple):
    """The token ids that an image is drawn from: two rows, which may differ in length."""

    conditional: list[int]  # the prompt's tokens
    unconditional: list[int]  # what guidance leads away from


class Prompts(Protocol):
    """Turns words into token ids, with one tokenizer."""

    def ids(self, prompt: str) -> list[int]:
        """Returns a prompt's row, up to where the first code is drawn. A prompt that cannot be used is a ValueError."""

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """Returns an image's two rows: a prompt's, and a negative prompt's or else the model's own unconditional row."""


@dataclass(frozen=True)
class Raster:
    """Where an image's codes stand in its sequence: row by row, with a fixed token, or none, between two rows.

    Some models draw the whole image small first. Its codes stand before the others, row by row; no token ends lines then.
    """

    rows: int
    columns: int
    line_end: int | None = None  # row of the code table that the fixed token is fed back as
    small: tuple[int, int] = (0, 0)  # rows and columns of the small image, where there is one

    @property
    def small_tokens(self) -> int:
        """Returns how many codes the small image has."""
        return self.small[0] * self.small[1]

    @property
    def image_tokens(self) -> int:
        """Returns T, the number of codes per image."""
        return self.small_tokens + self.rows * self.columns

    @property
    def stride(self) -> int:
        """Returns how many positions lie between a code and the one below it."""
        return self.columns + (self.line_end is not None)

    @property
    def length(self) -> int:
        """Returns T', the number of positions per image: its codes and the fixed tokens among them."""
        return self.small_tokens + self.rows * self.stride - (self.line_end is not None)

    def first_guesses(self, positions: int) -> Tensor:
        """Returns for each place which code is its first guess, the one above: [positions] int64, also beyond the image."""
        places = torch.arange(positions)
        return (places - torch.where(places < self.small_tokens, self.small[1], self.stride)).clamp(min=0)

    def with_line_ends(self, places: Tensor, codes: Tensor) -> Tensor:
        """Returns the codes at these places in the sequence, with the fixed token wherever a line ends."""
        if self.line_end is None:
            return codes
        return codes.masked_fill(places % self.stride == self.columns, self.line_end)

    def sequence(self, codes: Tensor) -> Tensor:
        """Puts the fixed tokens between rows: [T] int64 codes to [T']."""
        if self.line_end is None:
            return codes
        return F.pad(codes.view(self.rows, self.columns), (0, 1), value=self.line_end).flatten()[:-1]

    @cached_property
    def places(self) -> Tensor:
        """Returns where in the sequence the codes are, [T] int64."""
        if self.line_end is None:
            return torch.arange(self.image_tokens)
        return (torch.arange(self.rows).unsqueeze(1) * self.stride + torch.arange(self.columns)).flatten()


@dataclass(frozen=True)
class Vision:
    """How a model reads pictures; it draws by other features."""

    text_model: PreTrainedModel  # with the text head, and transformers' `generate`
    modules: tuple[nn.Module, ...]  # that read pictures
    see: Callable[[Tensor], Tensor]  # pixels [n, 3, H, W] to the features [n, T, D] that stand for images in a text


@dataclass(frozen=True)
class ImageModel:
    """An image model taken apart. Letters: R rows, B images, T image tokens, D hidden size."""

    family: str
    config: PretrainedConfig  # the language model's
    backbone: nn.Module  # the decoder without its text head; called with inputs_embeds
    blocks: nn.ModuleList
    final_norm: LlamaRMSNorm
    embed_text: nn.Module  # [R, S] ids to [R, S, D]
    image_head: tuple[nn.Module, ...]  # the modules that compute logits of codes
    head_name: str  # the module that holds them, for messages
    read_head: Callable[[], Head]  # the weights of the head stage, as they are now
    code_modules: tuple[nn.Module, ...]  # the modules that embed codes
    embed_codes: Callable[[Tensor], Tensor]  # rows of the code table [R] to the embeddings [R, D] that are fed next
    # All tensors that `embed_codes` reads; None where it has more than tensors.
    code_weights: Callable[[], list[Tensor] | None]
    # By the decoder: [B, T] codes to [B, 3, H, W] pixels, in [-1, 1] but for overshoot. None where another model paints.
    pixel_decoder: nn.Module | None
    to_pixels: Callable[[Tensor], Tensor] | None
    raster: Raster
    image_size: tuple[int, int]  # width and height, in pixels
    prompts: Callable[[PreTrainedTokenizerBase], Prompts]
    # [3, T'] int64, where an image's tokens stand on three axes of positions, counted from the first; None: in a row
    positions: Tensor | None = None
    guided: bool = True  # whether images have a row without their words, so that guidance is possible
    # What another model that paints takes, by name, from codes [T]; files of codes hold it.
    painter_inputs: Callable[[Tensor], dict[str, Tensor]] = lambda codes: {}
    vision: Vision | None = None  # where the model answers questions about pictures
    folder: Path | None = None  # that the model was loaded from

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Returns the modules that drawing takes its weights from."""
        pixel_decoder = () if self.pixel_decoder is None else (self.pixel_decoder,)
        return self.backbone, self.embed_text, *self.image_head, *self.code_modules, *pixel_decoder

    @property
    def head(self) -> Head:
        """Returns the head stage's parameters, as they are now. A linear with an adapter or in 8 bits is a ValueError."""
        return self.read_head()

    @property
    def paints(self) -> bool:
        """Returns whether the model makes pictures of its codes itself."""
        return self.to_pixels is not None

    def check_paints(self, what: str) -> None:
        """Raises ValueError where another model paints the codes; it names what needs pictures."""
        if not self.paints:
            raise ValueError(
                f"{what} must go with a model that paints its codes itself, got one of the family {self.family}, "
                "whose images are files of the format safetensors"
            )

    @property
    def image_tokens(self) -> int:
        """Returns T, the number of codes per image."""
        return self.raster.image_tokens

    @property
    def num_layers(self) -> int:
        """Returns N, the number of blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Returns the device that the model lies on."""
        return self.final_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Returns the hidden states' dtype."""
        return self.final_norm.weight.dtype

    @property
    def stored_dtype(self) -> torch.dtype:
        """Returns the weights' dtype: that of packed ones, otherwise that in which hidden states are computed."""
        packed = self._packed
        return self.dtype if packed is None else packed.stored_dtype

    @property
    def is_packed(self) -> bool:
        """Tells whether weights lie packed for a CPU, so that nobody can train them."""
        return self._packed is not None

    @property
    def _packed(self) -> Packed | None:
        return next((module.packed for module in self.blocks.modules() if isinstance(module, PackedLinear)), None)

    @property
    def stored_as(self) -> str:
        """Returns `stored_dtype` as recipes and runs name it: "bfloat16"."""
        return str(self.stored_dtype).removeprefix("torch.")


# Buffers in many checkpoints that every model computes for itself.
COMPUTED_BUFFERS = r"rotary_emb\.inv_freq$|\.position_ids$"


@dataclass(frozen=True)
class Family:
    """A kind of image model: how one is recognised and taken apart, and how its checkpoints are read.

    The defaults fit checkpoints in transformers' own format.
    """

    name: str  # for messages: "Janus"
    class_name: str  # for messages: the class that is taken apart, and whose it is
    members: tuple[str, ...]  # attributes, dotted, by which a model of the class is recognised
    adapt: Callable[[Any], ImageModel]
    model_type: str  # in config.json
    model_class: type[PreTrainedModel]  # what a checkpoint is loaded into
    # Raises ValueError where a config of `model_class` cannot draw, such as one whose image size does not fit its codes.
    check_config: Callable[[Any], None]
    paints: bool = True  # whether these models make pictures of their codes themselves
    # The config from a checkpoint's folder and its config.json; None where that is transformers' own format.
    read_config: Callable[[Path, dict[str, Any]], PretrainedConfig] | None = None
    # A checkpoint's tensors, by the names in `model_class`.
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    unused: re.Pattern[str] = re.compile(COMPUTED_BUFFERS)  # names of tensors in checkpoints that are left out
    packed: tuple[str, ...] = ()  # linears that are packed beside the blocks', where a CPU packs
    # What a loaded tokenizer or model still lacks, because the format keeps it elsewhere.
    prepare_tokenizer: Callable[[PreTrainedTokenizerFast], None] = lambda tokenizer: None
    prepare_model: Callable[[Any, PreTrainedTokenizerBase], None] = lambda model, tokenizer: None

    def recognises(self, model: PreTrainedModel) -> bool:
        """Tells whether a model has this family's members."""
        try:
            attrgetter(*self.members)(model)
        except AttributeError:
            return False
        return True
