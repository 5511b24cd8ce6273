"""Writes drawn images as OpenAI's clients read them: one JSON answer, or server-sent events."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

from janus_dola.engine.ordered_images import recipe_of
from janus_dola.images.layer_map import counts_of, small_map
from janus_dola.images.recipe import CODES, encode_codes, encode_image
from janus_dola.models import ImageModel
from janus_dola.serve.engine_thread import FinishedImage, PartialImage
from janus_dola.serve.requests import ParsedRequest

HEARTBEAT = ": the images wait or are being drawn\n\n"  # a comment, which clients skip


class ResponseWriter:
    """Writes the answer to one request, for a model's name, and images of a size ("64x64") that it draws."""

    def __init__(self, request: ParsedRequest, model: str, size: str, image_model: ImageModel) -> None:
        self._request, self._model, self._size, self._image_model = request, model, size, image_model
        self._created = int(time.time())

    def entry(self, image: FinishedImage, keep: Callable[[bytes, str], str] | None) -> dict[str, Any]:
        """Returns an image with its seed, its settings and what DoLa did.

        `keep` takes the file and its format, and returns a URL for it; None puts the file itself into the answer.
        """
        recipe = recipe_of(self._request.recipes[image.k], image.codes, self._image_model)
        request, tokens = self._request, image.codes.tokens
        if request.image_format == CODES:
            content = encode_codes(tokens, self._image_model.painter_inputs(tokens), recipe)
        else:
            assert image.picture is not None  # the reader lets no other request through
            content = encode_image(image.picture, request.image_format, recipe, request.quality)
        entry: dict[str, Any] = {
            **({"b64_json": _base64(content)} if keep is None else {"url": keep(content, request.image_format)}),
            "seed": recipe.seed,
            "settings": recipe.settings.to_json(),
            "layers": {str(layer): count for layer, count in counts_of(image.codes.premature_layers).items()},
            "mean_jsd": round(float(image.codes.jsd.mean()), 6),
            "passes": int(image.codes.passes),
        }
        if request.layer_map:
            picture = small_map(image.codes.premature_layers, image.codes.jsd)
            entry["layer_map_b64_png"] = _base64(encode_image(picture, "png", None))
        return entry

    def answer(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the answer to a request without `stream`."""
        return {"data": entries, "usage": self._usage(len(entries)), **self._common("created")}

    def partial(self, image: PartialImage) -> str:
        """Returns the event for an image that is half drawn."""
        content = encode_image(image.picture, self._request.image_format, None, self._request.quality)
        more = {"partial_image_index": image.number, "index": image.k, "b64_json": _base64(content)}
        return self._event("image_generation.partial_image", more)

    def completed(self, image: FinishedImage) -> str:
        """Returns the event for an image that is done."""
        more = {**self.entry(image, None), "index": image.k, "usage": self._usage(1)}
        return self._event("image_generation.completed", more)

    def _event(self, kind: str, more: dict[str, Any]) -> str:
        return event(kind, {"type": kind, **more, **self._common("created_at")})

    def _common(self, created: str) -> dict[str, Any]:
        name = self._request.image_format.replace("jpg", "jpeg")
        same = {"quality": "auto", "background": "opaque", "output_format": name}
        return {created: self._created, "model": self._model, "size": self._size, **same}

    def _usage(self, images: int) -> dict[str, Any]:
        read, drawn = self._request.prompt_tokens, images * self._image_model.image_tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
            "output_tokens": drawn,
            "total_tokens": read + drawn,
        }


def event(kind: str, data: dict[str, Any]) -> str:
    """Returns a server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
