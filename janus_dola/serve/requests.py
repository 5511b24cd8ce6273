"""Reads requests: which fields a client may send, and the images they ask for."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import ConfigDict, Field, create_model, model_validator

from janus_dola.arguments import MAX_SEED, ImageFormat, last_seed, shown
from janus_dola.engine.jobs import Job
from janus_dola.engine.plan import lens_of, weights_named
from janus_dola.images.recipe import CODES, Recipe, encode_image
from janus_dola.kernels.lens_map import Lens
from janus_dola.pipeline import JanusDoLa
from janus_dola.serve.engine_thread import Event, ImageRequest
from janus_dola.settings import SETTINGS, DrawSettings, Setting

MAX_IMAGES = 10  # per request
MAX_PROMPT_TOKENS = 512
_MAX_CHARACTERS = 8192
_MAX_RANDOM_SEED = 2**53 - 1  # JavaScript's integers end there
_UNUSED = "OpenAI's; it changes nothing here."


def _field(name: str, setting: Setting) -> tuple[Any, Any]:
    """Returns the field of a request for a setting; `DrawSettings` checks what the field does not."""
    kind = list[int] | Literal["auto"] if name == "candidate_layers" else setting.type
    if name == "contrast":
        kind |= None  # plain decoding
    default = None if setting.methods else setting.default  # a method's settings have the method's own defaults
    return kind, Field(default, description=setting.help, **_BOUNDS.get(name, {}))


_BOUNDS: dict[str, dict[str, Any]] = {  # for the JSON schema
    "cfg_weight": {"ge": -100, "le": 100},
    "temperature": {"ge": 0, "le": 100},
    "alpha": {"ge": 0, "le": 1},
    "negative_prompt": {"max_length": _MAX_CHARACTERS},
}
_Settings: Any = create_model("_Settings", **{name: _field(name, setting) for name, setting in SETTINGS.items()})  # type: ignore[call-overload]


class ImagesRequest(_Settings):
    """The body of POST /v1/images/generations: OpenAI's fields and the fields of `DrawSettings`; null is as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, max_length=_MAX_CHARACTERS, description="What to draw.")]
    model: Annotated[str | None, Field(description="A name of the model that this server draws with.")] = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many images.")] = 1
    size: Annotated[str, Field(description='"auto", or the size that the model draws, such as "384x384".')] = "auto"
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        Field(description="The image itself, or a URL that serves it for an hour, which DALL-E has as default."),
    ] = None
    output_format: Annotated[
        Literal["png", "jpeg", "webp", "safetensors"] | None,
        Field(
            description="safetensors holds codes, not pixels: the default where another model paints them, else png."
        ),
    ] = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="Quality of a JPEG or WebP file; WebP is lossless at 100.")
    ] = None
    stream: Annotated[bool, Field(description="Answer with server-sent events.")] = False
    partial_images: Annotated[
        int, Field(ge=0, le=16, description="Pictures of each image while it is drawn; needs `stream`.")
    ] = 0
    background: Literal["auto", "opaque"] = "auto"
    quality: Annotated[
        Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"], Field(description=_UNUSED)
    ] = "auto"
    style: Annotated[Literal["vivid", "natural"] | None, Field(description=_UNUSED)] = None
    moderation: Annotated[Literal["auto", "low"], Field(description=_UNUSED)] = "auto"
    complexity: Annotated[Literal["low", "medium", "high"] | None, Field(description=_UNUSED)] = None
    user: Annotated[str | None, Field(description=_UNUSED)] = None
    safety_identifier: Annotated[str | None, Field(description=_UNUSED)] = None
    seed: Annotated[
        int,
        Field(ge=-1, le=MAX_SEED, description="Image k has the seed `seed + k`; -1 picks a random seed."),
    ] = -1
    layer_map: Annotated[
        bool, Field(description="Add a map of the layer chosen at each code and of its divergence.")
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        """Leaves out what is null, which counts as absent; but a `contrast` of null is plain decoding."""
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None or name == "contrast"}


class InvalidError(ValueError):
    """A field of a request has a value that is not allowed."""

    def __init__(self, field: str, message: str, status: int = 400, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.field, self.status, self.code = field, status, code


@dataclass(frozen=True)
class ParsedRequest:
    """A valid request."""

    images: list[ImageRequest]
    recipes: list[Recipe]  # one per image
    image_format: ImageFormat
    quality: int | None  # of its file
    prompt_tokens: int
    layer_map: bool


class Reader:
    """Turns requests into images to draw, for one model and the names that clients may call it by."""

    def __init__(self, pipe: JanusDoLa, names: Sequence[str]) -> None:
        self.pipe, self.image_model, self.names = pipe, pipe.image_model, names
        self._recipe = pipe.recipe(DrawSettings())
        self._prompts = self.image_model.prompts(pipe.tokenizer)
        self._numbers = itertools.count()
        self.size = "{}x{}".format(*self.image_model.image_size)
        positions = self.image_model.config.max_position_embeddings - self.image_model.raster.length
        self.longest = min(MAX_PROMPT_TOKENS, positions)

    def read(self, body: ImagesRequest, tell: Callable[[Event], object]) -> ParsedRequest:
        """Returns the images that a request asks for; an InvalidError names a field that this model cannot draw with."""
        if body.model not in (None, *self.names):
            allowed = " or ".join(map(repr, self.names))
            raise InvalidError("model", f"model must be {allowed}, got {shown(body.model)}", 404, "model_not_found")
        if body.size not in ("auto", self.size):
            message = f'size must be "auto" or "{self.size}", which the model draws, got {shown(body.size)}'
            raise InvalidError("size", message)
        if body.stream and body.response_format == "url":
            raise InvalidError("response_format", 'response_format must be "b64_json" with stream, got "url"')
        if body.partial_images and not body.stream:
            raise InvalidError("partial_images", f"partial_images must be 0 without stream, got {body.partial_images}")
        image_format = self._format(body)
        settings = self._settings(body)
        negative = settings.away_from
        ids = self._token_ids("prompt", body.prompt)
        rows = self._prompts.rows(ids, None if negative is None else self._token_ids("negative_prompt", negative))
        layers = settings.layers_to_share(self.image_model.num_layers)
        lens, params = self._lens(settings), settings.sampling_params(layers)
        seed = random.randint(0, _MAX_RANDOM_SEED - MAX_IMAGES) if body.seed == -1 else body.seed
        if seed > last_seed(body.n):
            raise InvalidError("seed", f"seed must lie in 0 .. {last_seed(body.n)} for {body.n} image(s), got {seed}")
        weights = self._recipe.weights if lens is None else weights_named(self.image_model, settings)
        recipe = replace(self._recipe, prompt=body.prompt, settings=settings, weights=weights)
        try:
            if image_format != CODES:
                encode_image(Image.new("RGB", (1, 1)), image_format, replace(recipe, seed=seed + body.n - 1))
        except ValueError as error:  # the recipe is too long for the format
            raise InvalidError("output_format", f"output_format must be 'png' or 'webp': {error}") from None
        jobs = [Job(next(self._numbers), 0, k, rows, seed + k, params) for k in range(body.n)]
        return ParsedRequest(
            [ImageRequest(job, layers, lens, body.partial_images, tell) for job in jobs],
            [replace(recipe, seed=job.seed) for job in jobs],
            image_format,
            body.output_compression,
            len(rows.conditional),
            body.layer_map,
        )

    def _format(self, body: ImagesRequest) -> ImageFormat:
        name = body.output_format or ("png" if self.image_model.paints else CODES)
        if name != CODES and not self.image_model.paints:
            message = f'output_format must be "{CODES}" for this model, whose codes another one paints, got "{name}"'
            raise InvalidError("output_format", message)
        if name == CODES and body.partial_images:
            message = f"partial_images must be 0 where an image is its codes ({CODES}), got {body.partial_images}"
            raise InvalidError("partial_images", message)
        return "jpg" if name == "jpeg" else name

    def _settings(self, body: ImagesRequest) -> DrawSettings:
        given = body.model_dump(include=set(SETTINGS), exclude_unset=True)
        last = self.image_model.num_layers - 1
        layers, forced = given.get("candidate_layers", "auto"), given.get("premature_layer")
        if layers != "auto" and not all(1 <= layer <= last for layer in layers):
            raise InvalidError("candidate_layers", f"candidate_layers must lie in 1 .. {last}, got {shown(layers)}")
        if isinstance(forced, int) and not 1 <= forced <= last:
            message = f'premature_layer must lie in 1 .. {last}, or be "final", got {forced}'
            raise InvalidError("premature_layer", message)
        try:
            return self.pipe.fitted(DrawSettings().changed(given))
        except ValueError as error:  # its text begins with the field's name
            raise InvalidError(str(error).partition(" ")[0], str(error)) from None

    def _lens(self, settings: DrawSettings) -> Lens | None:
        if settings.lens not in (None, "auto"):  # clients name no files of this machine
            raise InvalidError("lens", f'lens must be null or "auto", got {shown(settings.lens)}')
        try:
            return lens_of(self.image_model, settings)
        except ValueError as error:
            raise InvalidError("lens", str(error)) from None

    def _token_ids(self, field: str, prompt: str) -> list[int]:
        try:
            token_ids = self._prompts.ids(prompt)
        except ValueError as error:
            raise InvalidError(field, str(error)) from None
        if len(token_ids) > self.longest:
            raise InvalidError(field, f"{field} must have at most {self.longest} tokens, got {len(token_ids)}")
        return token_ids
