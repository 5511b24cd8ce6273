"""GLM-Image's autoregressive stage, as transformers' `GlmImageForConditionalGeneration`; a diffusion model paints its codes.

An image has the size that the model's config says, `target_h` and `target_w` in pixels (1152 and 768), as transformers'
processor has it. A code stands for 32 x 32 pixels. The whole image is drawn small first, in about 256 codes whatever the
size, and then in full. Nothing guides. What comes behind the last code, a token that ends the image, is not drawn.
"""

import math
from functools import partial

import torch
from torch import Tensor
from transformers import GlmImageConfig, GlmImageForConditionalGeneration, PreTrainedTokenizerBase

from janus_dola.arguments import integer
from janus_dola.kernels.types import Head
from janus_dola.models.eval_copy import in_eval_mode
from janus_dola.models.model import Family, ImageModel, PromptRows, Raster
from janus_dola.models.weights import is_as_published, weight_of
from janus_dola.models.words import around_words, check_words, named_token_id, spelled_out

_PIXELS_PER_CODE = 32
_SMALL = 16  # codes per side of the small image, if it is a square
_SIZE = {"target_h": 1152, "target_w": 768}  # what transformers' processor takes, too
_MOST_PIXELS = 2**14  # per side


def _adapt(model: GlmImageForConditionalGeneration) -> ImageModel:
    backbone, codes, raster = model.model.language_model, model.config.vq_config.num_embeddings, _raster(model.config)
    embed_text = backbone.get_input_embeddings()

    def head() -> Head:
        norm, weight = backbone.norm, weight_of(model.lm_head)
        assert isinstance(weight, Tensor)  # never packed
        return Head(norm.weight, norm.variance_epsilon, weight[:codes])

    return ImageModel(
        family="glm_image",
        config=backbone.config,
        backbone=backbone,
        blocks=backbone.layers,
        final_norm=backbone.norm,
        embed_text=embed_text,
        image_head=(model.lm_head,),
        head_name="lm_head",
        read_head=head,
        code_modules=(embed_text,),
        embed_codes=lambda numbers: in_eval_mode(embed_text)(numbers),  # codes are the first tokens
        code_weights=lambda: [embed_text.weight[:codes]] if is_as_published(embed_text) else None,
        pixel_decoder=None,
        to_pixels=None,
        raster=raster,
        image_size=(raster.columns * _PIXELS_PER_CODE, raster.rows * _PIXELS_PER_CODE),
        prompts=partial(_GlmImagePrompts, raster),
        positions=_positions(raster),
        guided=False,
        painter_inputs=lambda tokens: {"prior_token_ids": prior_token_ids(tokens, raster)},
    )


def _raster(config: GlmImageConfig) -> Raster:
    """Returns the grids for the image size in a config."""
    sides = []
    for name, default in _SIZE.items():
        pixels = integer(name, getattr(config, name, default), _PIXELS_PER_CODE, _MOST_PIXELS)
        if pixels % _PIXELS_PER_CODE:
            raise ValueError(f"{name} must be a multiple of {_PIXELS_PER_CODE}, got {pixels}")
        sides.append(pixels // _PIXELS_PER_CODE)
    rows, columns = sides
    small = int(math.sqrt(rows / columns) * _SMALL), int(math.sqrt(1 / (rows / columns)) * _SMALL)
    if not all(small):
        raise ValueError(
            f"target_h and target_w must differ by less than {_SMALL**2} times, got {rows} x {columns} codes"
        )
    return Raster(rows, columns, small=small)


def _positions(raster: Raster) -> Tensor:
    """Returns where codes stand on the three axes: the image's number, row and column, all counted from where it begins."""
    begin, images = 0, []
    for rows, columns in (raster.small, (raster.rows, raster.columns)):
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        images.append(begin + torch.stack([torch.zeros_like(row), row, column]).flatten(1))
        begin += max(rows, columns)
    return torch.cat(images, 1)


def prior_token_ids(tokens: Tensor, raster: Raster) -> Tensor:
    """Returns what diffusers' `GlmImagePipeline` takes as `prior_token_ids`: the codes in full, each twice as wide and high.

    Args:
        tokens: [..., T] int64, as `GenerationOutput.tokens`; `raster` is `pipe.image_model.raster`.
    Returns:
        [images, 4 rows columns] int64.
    """
    codes = tokens[..., raster.small_tokens :].reshape(-1, raster.rows, raster.columns)
    return codes.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)


def _check_config(config: GlmImageConfig) -> None:
    text, codes, raster = config.text_config, config.vq_config.num_embeddings, _raster(config)
    if not codes <= min(text.vision_vocab_size, text.vocab_size):
        raise ValueError(
            f"{codes} codes must be among the {text.vision_vocab_size} outputs and {text.vocab_size} tokens of the model"
        )
    if raster.length >= text.max_position_embeddings:
        raise ValueError(
            f"an image of {raster.columns} x {raster.rows} codes must leave room for a prompt in "
            f"{text.max_position_embeddings} positions"
        )


class _GlmImagePrompts:
    """`Prompts` for a GLM-Image, as transformers' processor frames them: the words, and both sizes in codes.

    A tokenizer that is not GLM-Image's is a ValueError.
    """

    def __init__(self, raster: Raster, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        for name in ("bos_token", "grid_bos_token", "grid_eos_token"):
            named_token_id(tokenizer, name)
        begin, end = tokenizer.grid_bos_token, tokenizer.grid_eos_token
        rows, columns = raster.small
        self._sizes = f"{begin}{raster.rows} {raster.columns}{end}{begin}{rows} {columns}{end}{tokenizer.bos_token}"
        # What the tokenizer itself puts before a text.
        ids, bare = tokenizer("x")["input_ids"], self._encode("x")
        self._before = ids[: len(ids) - len(bare)]

    def ids(self, prompt: str) -> list[int]:
        """Returns a prompt's row; names of special tokens among the words are plain text."""
        check_words("prompts", prompt)
        template = self._tokenizer.chat_template
        before, after = around_words(self._tokenizer, template, answers=False) if template else ("", "")
        first, *others = spelled_out(prompt, self._tokenizer)
        pieces = [before + first, *others]
        pieces[-1] += after + self._sizes
        return [*self._before, *(number for piece in pieces for number in self._encode(piece))]

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """Returns the row with the words, and an empty one: nothing guides."""
        return PromptRows(ids, [])

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


GLM_IMAGE = Family(
    name="GLM-Image",
    class_name="transformers' GlmImageForConditionalGeneration",
    members=("model.language_model", "model.visual", "model.vqmodel"),
    adapt=_adapt,
    model_type="glm_image",
    model_class=GlmImageForConditionalGeneration,
    check_config=_check_config,
    paints=False,
)
