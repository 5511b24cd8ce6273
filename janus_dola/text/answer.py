"""Answers to questions about pictures, with a contrast of layers or without."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from janus_dola.arguments import integer, shown
from janus_dola.contrasts import Contrast
from janus_dola.models.contexts import undisturbed
from janus_dola.models.eval_copy import in_eval_mode
from janus_dola.models.families.janus_prompts import IMAGE_PLACEHOLDER, JanusPrompts
from janus_dola.models.model import ImageModel
from janus_dola.models.soundness import check_sound
from janus_dola.models.words import token_id
from janus_dola.settings import DrawSettings
from janus_dola.text.decode import dola_generate
from janus_dola.text.vision_pixels import pixels

_MOST_NEW_TOKENS = 65536


class Answering:
    """One question about pictures, ready to be answered.

    Args:
        image_model, tokenizer: a Janus and its tokenizer.
        images, question, contrast, max_new_tokens, temperature: as for `JanusDoLa.answer`.
    Raises:
        ValueError: an argument is out of range, or the question has no room in the model.
    """

    def __init__(
        self,
        image_model: ImageModel,
        tokenizer: PreTrainedTokenizerBase,
        images: Image.Image | Sequence[Image.Image],
        question: str,
        contrast: Contrast | None,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        pictures = _pictures(images)
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question must be a string with words, got {question!r}")
        most = integer("max_new_tokens", max_new_tokens, 1, _MOST_NEW_TOKENS)
        temperature = DrawSettings(temperature=temperature).temperature  # checks its range
        if contrast is not None:
            contrast.layers_to_read(image_model.num_layers)  # a wrong layer is an error before anything is computed
        if image_model.vision is None:
            raise ValueError(
                f"model must be a Janus to answer questions about pictures, got one of the family {image_model.family}"
            )
        check_sound(image_model.vision.modules)
        self._vision, prompts = image_model.vision, JanusPrompts(tokenizer)
        ids = prompts.question_ids(question, len(pictures), image_model.image_tokens)
        room = image_model.config.max_position_embeddings - len(ids)
        if room < 1:
            raise ValueError(
                f"question and images must leave room for an answer in {image_model.config.max_position_embeddings} "
                f"tokens, got {len(ids)}, of which each of {len(pictures)} image(s) takes {image_model.image_tokens + 2}"
            )
        self._image_model, self._tokenizer, self._contrast = image_model, tokenizer, contrast
        with undisturbed():
            self._ids = torch.tensor([ids], device=image_model.device)
            self._pixels = pixels(pictures, image_model.image_size[0], tokenizer)
        sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        self._config = GenerationConfig(
            max_new_tokens=min(most, room),
            do_sample=temperature > 0,
            guidance_scale=1.0,  # a checkpoint's guidance is meant for drawing
            bos_token_id=prompts.special.bos,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=prompts.special.pad,
            **sampling,
        )

    def text(self) -> str:
        """Returns the whole answer."""
        with undisturbed(self._image_model.device):
            return self._tokenizer.decode(self._generate()[0], skip_special_tokens=True).strip()

    def pieces(self) -> Iterator[str]:
        """Yields the answer in pieces, as its words are decided. A caller that stops reading ends it."""
        streamer, stop = TextIteratorStreamer(self._tokenizer, skip_special_tokens=True), threading.Event()
        failed: list[BaseException] = []

        def stopped(ids: Tensor, scores: object, **more: object) -> Tensor:
            return torch.full((len(ids),), stop.is_set(), device=ids.device)

        def work() -> None:
            try:
                with undisturbed(self._image_model.device):
                    self._generate(streamer, stopping_criteria=StoppingCriteriaList([stopped]))
            except BaseException as error:  # raised again in the caller's thread
                failed.append(error)
                streamer.text_queue.put(streamer.stop_signal)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            first = True
            for piece in streamer:
                piece = piece.lstrip() if first else piece
                if piece:
                    first = False
                    yield piece
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]

    def _generate(self, streamer: TextIteratorStreamer | None = None, **more: Any) -> Tensor:
        """Generates the answer: token ids [1, n], without the question."""
        image_model = self._image_model
        embeddings = in_eval_mode(image_model.embed_text)(self._ids)
        features = self._vision.see(self._pixels.to(image_model.device, image_model.dtype)).flatten(0, 1)
        placeholders = self._ids == token_id(self._tokenizer, IMAGE_PLACEHOLDER)
        embeddings = embeddings.masked_scatter(placeholders[..., None], features.to(embeddings.dtype))
        if self._contrast is None:
            more |= {"streamer": streamer}
        else:
            more |= {"custom_generate": dola_generate, "contrast": self._contrast, "stream_to": streamer}
        # Not the model's own `generate`, which for Janus drops some arguments on its way to this one.
        return GenerationMixin.generate(
            in_eval_mode(self._vision.text_model),
            inputs_embeds=embeddings,
            attention_mask=torch.ones_like(self._ids),
            generation_config=self._config,
            **more,
        )


def _pictures(images: object) -> list[Image.Image]:
    pictures = [images] if isinstance(images, Image.Image) else images
    if not isinstance(pictures, Sequence) or not all(isinstance(image, Image.Image) for image in pictures):
        raise ValueError(f"images must be a Pillow image or a list of them, got {shown(images)}")
    if not pictures:
        raise ValueError("images must hold at least one image, got none; a question without one is for a text model")
    return list(pictures)
