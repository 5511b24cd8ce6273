"""What is said of images that are drawn, as OpenAI's clients read it."""

import base64
import json
from collections.abc import Callable
from typing import Any

from janus_dola.images.layer_map import counts_of, small_map
from janus_dola.images.recipe import encode_image
from janus_dola.serve.requests import Wanted
from janus_dola.serve.worker import Finished, Partial


class Answers:
    """Answers to one request.

    Args:
        size: of the images, such as "64x64".
        image_tokens: of an image.
        created: when the request came, in seconds since 1970.
    """

    def __init__(self, wanted: Wanted, size: str, image_tokens: int, created: int) -> None:
        self._wanted, self._size, self._image_tokens, self._created = wanted, size, image_tokens, created
        self._format = "jpeg" if wanted.image_format == "jpg" else wanted.image_format

    def image(self, found: Finished, keep: Callable[[bytes, str], str] | None) -> dict[str, Any]:
        """An image with its seed, its settings, and what DoLa did.

        Args:
            keep: puts the file at an address; without it the answer holds the file.
        """
        recipe = self._wanted.recipes[found.k]
        content = encode_image(found.picture, self._wanted.image_format, recipe)
        entry: dict[str, Any] = {
            **({"b64_json": _base64(content)} if keep is None else {"url": keep(content, self._wanted.image_format)}),
            "seed": recipe.seed,
            "settings": {"dola": True, **recipe.settings.named()},
            "layers": {str(layer): count for layer, count in counts_of(found.codes.premature_layers).items()},
            "mean_jsd": round(float(found.codes.jsd.mean()), 6),
            "passes": int(found.codes.passes),
        }
        if self._wanted.layer_map:
            picture = small_map(found.codes.premature_layers, found.codes.jsd)
            entry["layer_map_b64_png"] = _base64(encode_image(picture, "png", None))
        return entry

    def all(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        return {"data": entries, "usage": self._usage(len(entries)), **self._common("created")}

    def partial(self, found: Partial) -> str:
        """The event of a picture on the way."""
        content = encode_image(found.picture, self._wanted.image_format, None)
        more = {"partial_image_index": found.number, "index": found.k, "b64_json": _base64(content)}
        return self._event("image_generation.partial_image", more)

    def completed(self, found: Finished) -> str:
        """The event of an image that is done."""
        more = {**self.image(found, None), "index": found.k, "usage": self._usage(1)}
        return self._event("image_generation.completed", more)

    def _event(self, kind: str, more: dict[str, Any]) -> str:
        return event(kind, {"type": kind, **more, **self._common("created_at")})

    def _common(self, created: str) -> dict[str, Any]:
        return {
            created: self._created,
            "size": self._size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self._format,
        }

    def _usage(self, images: int) -> dict[str, Any]:
        read, drawn = self._wanted.prompt_tokens, images * self._image_tokens
        return {
            "input_tokens": read,
            "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
            "output_tokens": drawn,
            "total_tokens": read + drawn,
        }


def event(kind: str, data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
