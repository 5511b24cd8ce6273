"""What a run draws with: its settings, and the single image as a task."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from janus_dola.arguments import MAX_PARALLEL_SIZE, MAX_SEED, ImageFormat, Window, check_window, integer
from janus_dola.images.files import check_template
from janus_dola.models.storage import Quantization, parse_dtype
from janus_dola.settings import DrawSettings


@dataclass(frozen=True)
class RunSettings:
    """What a run draws with. A prompt may have its own seed, parallel size and ways to choose codes.

    Attributes:
        model: "mini", a folder, or a repository on the Hugging Face hub.
        drawing: how codes are chosen; a prompt may have settings of its own.
        parallel_size: images per prompt, 1 .. 65536.
        seed: of the first image; the n-th image of the run has the seed `seed + n`.
        image_format: "jpg", "png" or "webp".
        dtype: None is float32 on a CPU and bfloat16 elsewhere.
        quantize: None, "int8" or "fp8", as for `JanusDoLa.from_pretrained`.
        window: codes a pass, as for `JanusDoLa.generate`.
        metadata: prompt, model and settings are written into each image.
        revision: of the model's repository; None is the newest.
        name_template: of the files, such as "{id}_p{k}", with words, id (the index where there is none), index, k, number
            and seed; None is "{index}_{words}_p{k}".
    Raises:
        ValueError: a value is out of range.
    """

    model: str = "mini"
    drawing: DrawSettings = DrawSettings()  # noqa: RUF009 (frozen)
    parallel_size: int = 4
    seed: int = 0
    image_format: ImageFormat = "jpg"
    dtype: str | None = None
    quantize: Quantization | None = None
    window: Window = "auto"
    metadata: bool = True
    name_template: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parallel_size", integer("parallel_size", self.parallel_size, 1, MAX_PARALLEL_SIZE))
        object.__setattr__(self, "seed", integer("seed", self.seed, 0, MAX_SEED - self.parallel_size))
        check_window(self.window)
        if self.name_template is not None:
            check_template(self.name_template)
        if self.image_format not in get_args(ImageFormat):
            raise ValueError(f"image_format must be one of {list(get_args(ImageFormat))}, got {self.image_format!r}")
        if self.dtype is not None:  # one name for "bf16" and "bfloat16"
            object.__setattr__(self, "dtype", str(parse_dtype(self.dtype)).removeprefix("torch."))

    def named(self) -> dict[str, Any]:
        """Each setting under the name it has on the command line, as JSON holds it."""
        return {
            "model": self.model,
            "parallel_size": self.parallel_size,
            "dola": True,
            **self.drawing.named(),
            "seed": self.seed,
            "format": self.image_format,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "window": self.window,
            **({} if self.metadata else {"metadata": False}),
            **({} if self.name_template is None else {"name_template": self.name_template}),
            **({} if self.revision is None else {"revision": self.revision}),
        }

    def with_dtype(self, dtype: str) -> "RunSettings":
        """The same in this dtype."""
        return replace(self, dtype=dtype)


@dataclass(frozen=True)
class Task:
    """One image to draw."""

    number: int  # of the image in the run
    index: int  # of its prompt
    k: int  # which of the prompt's images
    prompt: str
    seed: int
    drawing: DrawSettings
    id: str | int | None = None  # what the user calls the prompt
    extra: Mapping[str, Any] = field(default_factory=dict)  # what else stood with it, for the manifest


class Distinct:
    """Names, of which no two are one file, on a disk that tells capitals apart or not. Keeps some 60 bytes a name."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, name: str) -> None:
        """Raises ValueError where another has that name."""
        key = hash(unicodedata.normalize("NFC", name).casefold())
        if key in self._seen:
            raise ValueError(f"name_template must tell all images apart, but two are {name}: add {{number}}")
        self._seen.add(key)
