"""Draws the prompts of a file into a folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from janus_dola.config import DoLaConfig
from janus_dola.image_files import ImageFormat, Recipe, file_name, save_image
from janus_dola.models.quantize import Quantization
from janus_dola.pipeline import JanusDoLa


@dataclass(frozen=True)
class Settings:
    """What every image of a run shares."""

    model: str
    cfg_weight: float
    temperature: float
    dola: DoLaConfig | None
    parallel_size: int
    seed: int
    backend: str = "auto"
    image_format: ImageFormat = "jpg"
    engine: str = "auto"
    quantize: Quantization | None = None


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSON file `{"prompts": [str, ...]}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file.
    """
    expected = 'must be {"prompts": [str, ...]}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"prompt file {path} {expected}, but is not JSON: {error}") from error
    prompts = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(prompts, list) or not prompts:
        raise ValueError(f"prompt file {path} {expected}, got {json.dumps(content)[:80]}")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt file {path} {expected}, got {prompt!r} as prompt {i}")
    return prompts


def draw_to_files(
    pipe: JanusDoLa, prompts: list[str], outdir: Path, settings: Settings, progress: bool = False
) -> Iterator[Path]:
    """Draws `parallel_size` images for each prompt and yields each file as it is written.

    Image k of prompt i has the seed `settings.seed + i * parallel_size + k`, which its file records.

    Raises:
        ValueError: a setting is out of range; nothing has been drawn then.
    """
    drawn = pipe.stream(
        prompts,
        settings.parallel_size,
        dola=settings.dola,
        cfg_weight=settings.cfg_weight,
        temperature=settings.temperature,
        seed=settings.seed,
        backend=settings.backend,
        engine=settings.engine,
        progress=progress,
    )
    outdir.mkdir(parents=True, exist_ok=True)
    for found in drawn:
        recipe = Recipe(
            model=settings.model,
            prompt=prompts[found.prompt],
            seed=found.seed,
            cfg_weight=settings.cfg_weight,
            temperature=settings.temperature,
            dola=settings.dola,
            dtype=str(pipe.parts.dtype).removeprefix("torch."),
            quantize=settings.quantize,
        )
        path = outdir / file_name(found.prompt, recipe.prompt, found.k, settings.image_format)
        save_image(found.image, path, recipe)
        yield path
