"""transformers' `Emu3ForConditionalGeneration`: codes are tokens of the language model's own vocabulary.

An image has the size that the model's config says: `image_area` in pixels (518400, which is 720 x 720) and `ratio` ("1:1").
Each row of codes but the last is followed by a token that ends lines. What comes behind the last code is of no use here.
"""

from functools import partial

import torch
from torch import Tensor
from transformers import Emu3ForConditionalGeneration, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from janus_dola.kernels.types import Head
from janus_dola.models.inspection import is_as_published, weight_of
from janus_dola.models.model import Family, ImageModel, PromptRows, Raster
from janus_dola.models.prompts import check_words, named_token_id, spelled_out, token_id

_IMAGE_AREA, _RATIO = 720 * 720, "1:1"  # what transformers' processor takes, too
BEGIN_OF_IMAGE, BEGIN_OF_CODES = "<|image start|>", "<|image token|>"  # between them stands the size


def _is_emu3(model: PreTrainedModel) -> bool:
    """Whether the model has this family's modules."""
    inner = getattr(model, "model", None)
    return all(hasattr(inner, name) for name in ("text_model", "vqmodel", "vocabulary_mapping"))


def _adapt(model: Emu3ForConditionalGeneration) -> ImageModel:
    """The pieces of the model.

    Raises:
        ValueError: the tokens of codes do not follow each other in the vocabulary, or there are not as many as codes.
    """
    backbone, vq, vocabulary = model.model.text_model, model.model.vqmodel, model.vocabulary_mapping
    embed_text, pixels_a_code = backbone.get_input_embeddings(), vq.spatial_scale_factor
    first, codes = vocabulary.img2bpe[0], vq.config.codebook_size
    if vocabulary.img2bpe != dict(zip(range(codes), range(first, first + codes), strict=True)):
        raise ValueError(
            f"vocabulary_map must have tokens for {codes} codes, one after the other, got {len(vocabulary.img2bpe)}"
        )
    of_codes, line_end = slice(first, first + codes), vocabulary.eol_token_id
    raster = _raster(model.config, pixels_a_code, codes)

    def head() -> Head:
        norm, weight = backbone.norm, weight_of(model.lm_head)
        assert isinstance(weight, Tensor)  # never packed
        return Head(norm.weight.detach(), norm.variance_epsilon, weight[of_codes])

    def embed_codes(numbers: Tensor) -> Tensor:
        return embed_text(torch.where(numbers < codes, numbers + first, line_end))

    def code_weights() -> list[Tensor] | None:
        weight = embed_text.weight
        return [weight[of_codes], weight[line_end]] if is_as_published(embed_text) else None

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
        to_pixels=lambda numbers: vq.decode(numbers.view(-1, raster.rows, raster.columns)),
        raster=raster,
        image_size=(raster.columns * pixels_a_code, raster.rows * pixels_a_code),
        prompts=partial(Emu3Prompts, raster),
    )


def _raster(config: PretrainedConfig, pixels_a_code: int, codes: int) -> Raster:
    area, ratio = getattr(config, "image_area", _IMAGE_AREA), getattr(config, "ratio", _RATIO)
    width, height = map(int, ratio.split(":"))
    scale = (area / (width * height)) ** 0.5 / pixels_a_code
    return Raster(round(height * scale), round(width * scale), line_end=codes)


class Emu3Prompts:
    """`Prompts` of an Emu3, as its authors frame them: bos, the words, and the size of the image in codes.

    A negative prompt is framed likewise. The model's own unconditional row is the last token of a prompt alone, as
    transformers' guidance has it.

    Raises:
        ValueError: the tokenizer is not that of an Emu3.
    """

    def __init__(self, raster: Raster, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._bos = tokenizer, named_token_id(tokenizer, "bos_token")
        begin, end = (token_id(tokenizer, name) for name in (BEGIN_OF_IMAGE, BEGIN_OF_CODES))
        self._frame = [begin, *self._encode(f"{raster.rows}*{raster.columns}"), end]

    def ids(self, prompt: str) -> list[int]:
        """See `Prompts`; names of special tokens among the words are plain text."""
        check_words("prompts", prompt)
        words = [number for piece in spelled_out(prompt, self._tokenizer) for number in self._encode(piece)]
        return [self._bos, *words, *self._frame]

    def rows(self, ids: list[int], negative: list[int] | None = None) -> PromptRows:
        """See `Prompts`."""
        return PromptRows(ids, ids[-1:] if negative is None else negative)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


EMU3 = Family(_is_emu3, _adapt)
