"""Emu3, as transformers' `Emu3ForConditionalGeneration`: codes are tokens in the language model's own vocabulary.

An image has the size that the model's config says: `image_area` in pixels (518400, which is 720 x 720) and `ratio` ("1:1").
Each row of codes but the last is followed by a token that ends lines. What comes behind the last code is not drawn.
"""

import re
from functools import partial

import torch
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration, PreTrainedTokenizerBase
from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

from janus_dola.arguments import integer, shown
from janus_dola.kernels.types import Head
from janus_dola.models.eval_copy import in_eval_mode
from janus_dola.models.model import Family, ImageModel, PromptRows, Raster
from janus_dola.models.weights import is_as_published, weight_of
from janus_dola.models.words import check_words, named_token_id, spelled_out, token_id

_IMAGE_AREA, _RATIO = 720 * 720, "1:1"  # what transformers' processor takes, too
_MOST_PIXELS = 2**28
_BEGIN_OF_SIZE, _BEGIN_OF_CODES = "<|image start|>", "<|image token|>"  # between them stands the size
# What transformers saves, and what the published checkpoints hold, has the names of its first Emu3.
_RENAMES = {
    r"^text_model\.lm_head\.": "lm_head.",
    r"^text_model\.model\.": "model.text_model.",
    r"^vqmodel\.": "model.vqmodel.",
}


def _adapt(model: Emu3ForConditionalGeneration) -> ImageModel:
    backbone, vq, vocabulary = model.model.text_model, model.model.vqmodel, model.vocabulary_mapping
    embed_text, codes = backbone.get_input_embeddings(), vq.config.codebook_size
    first, line_end = _first_code(vocabulary.img2bpe, codes), vocabulary.eol_token_id
    code_rows, raster = slice(first, first + codes), _raster(model.config, vq.spatial_scale_factor)

    def head() -> Head:
        norm, weight = backbone.norm, weight_of(model.lm_head)
        assert isinstance(weight, Tensor)  # never packed
        return Head(norm.weight, norm.variance_epsilon, weight[code_rows])

    def embed_codes(numbers: Tensor) -> Tensor:
        return in_eval_mode(embed_text)(torch.where(numbers < codes, numbers + first, line_end))

    def code_weights() -> list[Tensor] | None:
        weight = embed_text.weight
        return [weight[code_rows], weight[line_end]] if is_as_published(embed_text) else None

    return ImageModel(
        family="emu3",
        config=backbone.config,
        backbone=backbone,
        blocks=backbone.layers,
        final_norm=backbone.norm,
        embed_text=embed_text,
        image_head=(model.lm_head,),
        head_name="lm_head",
        read_head=head,
        code_modules=(embed_text,),
        embed_codes=embed_codes,
        code_weights=code_weights,
        pixel_decoder=vq,
        to_pixels=lambda numbers: in_eval_mode(vq).decode(numbers.view(-1, raster.rows, raster.columns)),
        raster=raster,
        image_size=(raster.columns * vq.spatial_scale_factor, raster.rows * vq.spatial_scale_factor),
        prompts=partial(_Emu3Prompts, raster),
    )


def _first_code(tokens: dict[int, int], codes: int) -> int:
    """Returns the token for code 0; the others must follow it in order."""
    first = tokens.get(0)
    if first is None or len(tokens) != codes or any(token != first + code for code, token in tokens.items()):
        raise ValueError(f"vocabulary_map must have tokens for {codes} codes, one after the other, got {len(tokens)}")
    return first


def _raster(config: Emu3Config, pixels_per_code: int) -> Raster:
    """Returns the grid for the image size in a config; in the code table the token that ends lines follows the codes."""
    area = integer("image_area", getattr(config, "image_area", _IMAGE_AREA), 1, _MOST_PIXELS)
    ratio = getattr(config, "ratio", _RATIO)
    sides = re.fullmatch(r"([1-9]\d{0,4}):([1-9]\d{0,4})", ratio) if isinstance(ratio, str) else None
    if sides is None:
        raise ValueError(f'ratio must be WIDTH:HEIGHT, such as "4:3", got {shown(ratio)}')
    width, height = map(int, sides.groups())
    scale = (area / (width * height)) ** 0.5 / pixels_per_code
    rows, columns = round(height * scale), round(width * scale)
    if not rows or not columns:
        raise ValueError(f"image_area and ratio must make at least one code, got {area} and {ratio!r}")
    return Raster(rows, columns, line_end=config.vq_config.codebook_size)


def _check_config(config: Emu3Config) -> None:
    vocabulary = Emu3ImageVocabularyMapping(config.vocabulary_map or {})
    codes, tokens = config.vq_config.codebook_size, config.text_config.vocab_size
    first, line_end = _first_code(vocabulary.img2bpe, codes), vocabulary.eol_token_id
    if type(line_end) is not int or not 0 <= first <= tokens - codes or not 0 <= line_end < tokens:
        raise ValueError(
            f"vocabulary_map must have {codes} codes and the token that ends lines among {tokens} tokens, got codes from "
            f"{first} and {line_end!r}"
        )
    raster = _raster(config, 2 ** (len(config.vq_config.channel_multiplier) - 1))
    room = config.text_config.max_position_embeddings
    if raster.length >= room:
        raise ValueError(
            f"an image of {raster.columns} x {raster.rows} codes must leave room for a prompt in {room} positions"
        )


class _Emu3Prompts:
    """`Prompts` for an Emu3, as its authors frame them: bos, the words, and the image's size in codes.

    A negative prompt is framed likewise. The model's own unconditional row is a prompt's last token alone, as
    transformers' guidance has it. A tokenizer that is not Emu3's is a ValueError.
    """

    def __init__(self, raster: Raster, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._bos = tokenizer, named_token_id(tokenizer, "bos_token")
        begin, end = (token_id(tokenizer, name) for name in (_BEGIN_OF_SIZE, _BEGIN_OF_CODES))
        self._frame = [begin, *self._encode(f"{raster.rows}*{raster.columns}"), end]

    def ids(self, prompt: str) -> list[int]:
        """Returns a prompt's row; names of special tokens among the words are plain text."""
        check_words("prompts", prompt)
        words = [number for piece in spelled_out(prompt, self._tokenizer) for number in self._encode(piece)]
        return [self._bos, *words, *self._frame]

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """Returns both rows, which mostly differ in length."""
        return PromptRows(ids, ids[-1:] if negative is None else negative)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in _RENAMES.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


EMU3 = Family(
    name="Emu3",
    class_name="transformers' Emu3ForConditionalGeneration",
    members=("model.text_model", "model.vqmodel", "model.vocabulary_mapping"),
    adapt=_adapt,
    model_type="emu3",
    model_class=Emu3ForConditionalGeneration,
    check_config=_check_config,
    rename=_rename,
)
