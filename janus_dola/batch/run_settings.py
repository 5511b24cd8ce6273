"""What a run draws with, and `run.json`, which keeps it in the folder and marks the folder as a run's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from janus_dola.arguments import (
    MAX_PARALLEL_SIZE,
    ImageFormat,
    Window,
    check_window,
    hint_at_locale,
    integer,
    last_seed,
)
from janus_dola.batch.folder import PARTIAL, checked, with_checksum
from janus_dola.images.files import check_template
from janus_dola.images.recipe import CODES
from janus_dola.images.whole_files import sync_folder, write_whole
from janus_dola.models.storage import Quantization, parse_dtype
from janus_dola.settings import DrawSettings

RUN_FILE = "run.json"
_MAX_BYTES = 2**20  # more is not read


@dataclass(frozen=True)
class RunSettings:
    """What a run draws with. A prompt may have its own seed, parallel size and ways to choose codes.

    Attributes:
        model: "mini", a folder, or a repository on the Hugging Face hub.
        drawing: how codes are chosen; a prompt may have settings of its own.
        parallel_size: images per prompt, 1 .. 65536.
        seed: the first image's seed; the n-th image of the run has the seed `seed + n`.
        image_format: "jpg", "png", "webp" or, for codes in place of pixels, "safetensors".
        dtype: None is float32 on a CPU and bfloat16 elsewhere.
        quantize: None, "int8" or "fp8", as for `JanusDoLa.from_pretrained`.
        window: codes per pass, as for `JanusDoLa.generate`.
        metadata: prompt, model and settings are written into each image.
        revision: of the model's repository; None is the newest.
        name_template: file names, such as "{id}_p{k}", made of words, id (the index where there is none), index, k, number
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
        object.__setattr__(self, "seed", integer("seed", self.seed, 0, last_seed(self.parallel_size)))
        if str(self.model).encode(errors="replace").decode() != str(self.model):
            raise ValueError(f"model must be valid Unicode, got {self.model!a}{hint_at_locale()}")
        check_window(self.window)
        if self.name_template is not None:
            check_template(self.name_template)
        if self.image_format not in get_args(ImageFormat):
            raise ValueError(f"image_format must be one of {list(get_args(ImageFormat))}, got {self.image_format!r}")
        if self.dtype is not None:  # one name for "bf16" and "bfloat16"
            object.__setattr__(self, "dtype", str(parse_dtype(self.dtype)).removeprefix("torch."))

    @property
    def pictures_for(self) -> str | None:
        """Returns what needs pictures, the format, in words; None for codes."""
        return None if self.image_format == CODES else f"format {self.image_format!r}"

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as JSON holds them, flat, under the names that they have on the command line."""
        own = {**vars(self), "format": self.image_format, **self.drawing.to_json()}
        del own["drawing"], own["image_format"]
        return own


@dataclass(frozen=True)
class RunFile:
    """The settings a folder was begun with, the number of images drawn at once, and where random seeds come from.

    A batch's size decides an image's last bit, so a run that goes on draws the same batches.
    """

    settings: dict[str, Any]  # as `RunSettings.to_json` gives them
    batch_size: int
    entropy: int | None = None  # what random seeds of lines are made of; None before there were any

    @classmethod
    def read(cls, outdir: Path) -> "RunFile | None":
        """Reads a folder's run file, if there is one; a ValueError says that it is not as a run wrote it."""
        path = outdir / RUN_FILE
        if not path.exists():
            return None
        if path.is_file():
            with path.open("rb") as file:
                content = checked(file.read(_MAX_BYTES))
            if content is not None:
                return cls(**content)
        raise ValueError(
            f"{path} must be as a run wrote it, but was edited or damaged, or comes from elsewhere. Take another --outdir"
        )

    def write(self, outdir: Path) -> None:
        """Writes the file into a folder."""
        content = json.dumps(with_checksum(vars(self)), indent=1, ensure_ascii=False)
        write_whole(outdir / RUN_FILE, f"{content}\n".encode(), partial=outdir / PARTIAL)
        sync_folder(outdir)

    def differences(self, settings: RunSettings) -> list[str]:
        """Returns the settings that differ from these, in words; a dtype that is not given is the same."""
        now = settings.to_json()
        if settings.dtype is None:
            now["dtype"] = self.settings.get("dtype")
        pairs = {name: (self.settings.get(name), now.get(name)) for name in {**now, **self.settings}}
        return [f"{name} {old}, now {new}" for name, (old, new) in pairs.items() if old != new]
