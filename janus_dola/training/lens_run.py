"""Trains a lens for a model, from images that the model draws itself, and writes it beside the model's weights."""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from janus_dola.arguments import integer, strings
from janus_dola.contrasts import DoLaConfig
from janus_dola.engine.scoring import states_at_codes
from janus_dola.images.files import refuse_existing, write_new
from janus_dola.models.checkpoint.reading import reading
from janus_dola.models.contexts import undisturbed
from janus_dola.models.lens_file import LENS_FILE, lens_bytes
from janus_dola.models.model import ImageModel
from janus_dola.models.weights import fingerprint
from janus_dola.pipeline import JanusDoLa
from janus_dola.training.lens_training import LensSettings, LensTraining

# Guidance that the images are drawn with, in turn, if the model can be guided: early layers are read with and without it.
_CFG_WEIGHTS = (1.0, 3.0, 5.0)
_POSITIONS = 64_000  # that are trained on, at least, if the caller does not say how many images
_STEPS_BETWEEN_NOTES = 100


def train_lens(
    pipe: JanusDoLa,
    prompts: str | Sequence[str],
    outfile: str | Path | None = None,
    *,
    layers: Literal["auto"] | Sequence[int] = "auto",
    images: int | None = None,
    settings: LensSettings = LensSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
    progress: bool = False,
) -> dict[int, tuple[float, float]]:
    """Trains an affine map for each candidate layer, and writes them to a file that `DoLaConfig(lens=...)` reads.

    The model draws images itself; the maps are trained so that its head says of an early layer what it says of the final
    one (`janus_dola.training.lens_training`). The model does not change. A training that was stopped goes on where it was,
    by what lies beside the file under its name and ".part".

    Args:
        pipe: the model. It is read as it is: a lens belongs to these weights.
        prompts: what to draw, in turn: one or several.
        outfile: None is lens.safetensors in the model's folder, which `lens="auto"` reads.
        layers: as for `DoLaConfig.candidate_layers`.
        images: how many to draw; None is enough for 64,000 positions. Their hidden states stay in memory: for each position
            and layer the hidden size, in the model's dtype.
        settings: rank, steps, batch size, learning rate and seed.
        overwrite: replaces a file that is there.
        progress: shows bars.
    Returns:
        by layer the mean KL(q_N || q_j) without the lens and with it, nats, on positions that were left out of training.
    Raises:
        ValueError: an argument is out of range, or the part beside the file is damaged or of another training.
        FileExistsError: the file is there.
    """
    image_model, given = pipe.image_model, strings(prompts)
    read = DoLaConfig(layers).layers_to_read(image_model.num_layers)
    if outfile is None:
        if image_model.folder is None:
            raise ValueError("outfile must be given for a model that was not loaded from a folder")
        outfile = image_model.folder / LENS_FILE
    path = Path(outfile)
    refuse_existing([path], overwrite)
    enough = -(-_POSITIONS // (_rows(image_model) * image_model.image_tokens))
    count = enough if images is None else integer("images", images, 1, 2**20)
    named = [given[number % len(given)] for number in range(count)]
    part = path.with_name(f"{path.name}.part")
    about = asdict(settings) | {"layers": read, "images": count, "weights": fingerprint(image_model)}
    about["prompts"] = hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]
    note = _read_note(part, about)
    if "tokens" not in note:
        note["tokens"] = _draw(pipe, named, settings.seed, progress)
        _write_note(part, note)
    with undisturbed(image_model.device):
        training = LensTraining(_states(pipe, named, note["tokens"], read, progress), image_model.head, settings)
        if "training" in note:
            training.restore(note["training"])
        with tqdm(total=settings.steps, initial=training.step, unit=" steps", disable=not progress) as bar:
            while training.step < settings.steps:
                training.run(training.step + _STEPS_BETWEEN_NOTES, bar.update)
                note["training"] = training.state()
                _write_note(part, note)
        before, after = training.divergence(trained=False), training.divergence()
    if not all(map(math.isfinite, (*before, *after))):
        raise ValueError(
            f"learning_rate must be smaller for this model, got {settings.learning_rate:g}: the loss became NaN"
        )
    nats = {layer: (round(b, 4), round(a, 4)) for layer, b, a in zip(read, before, after, strict=True)}
    maps = dict(zip(read, training.maps(), strict=True))
    write_new(path, lens_bytes(maps, image_model, about | {"nats": nats}), overwrite)
    part.unlink()
    return nats


def _rows(image_model: ImageModel) -> int:
    return 2 if image_model.guided else 1


def _draw(pipe: JanusDoLa, prompts: Sequence[str], seed: int, progress: bool) -> Tensor:
    """Draws an image per prompt, some with each guidance: codes [n, T]."""
    tokens = torch.empty(len(prompts), pipe.image_model.image_tokens, dtype=torch.int64)
    weights = _CFG_WEIGHTS if pipe.image_model.guided else _CFG_WEIGHTS[:1]
    for turn, cfg_weight in enumerate(weights):
        own = slice(turn, None, len(weights))
        if prompts[own]:
            out = pipe.generate(
                prompts[own],
                contrast=None,
                cfg_weight=cfg_weight,
                seed=seed * 10**6 + turn * len(prompts),
                progress=progress,
            )
            tokens[own] = out.tokens[:, 0]
    return tokens


def _states(pipe: JanusDoLa, prompts: Sequence[str], tokens: Tensor, layers: Sequence[int], progress: bool) -> Tensor:
    """Returns the hidden states that all codes were drawn from, of both rows where there are two: [L, n, D] on the CPU."""
    model, weights = pipe.image_model, pipe.engine.weights.read()
    each = tqdm(
        zip(pipe.encode(prompts), tokens, strict=True), total=len(prompts), unit=" images", disable=not progress
    )
    states = [
        states_at_codes(model, weights, rows[: _rows(model)], codes.to(model.device), layers).cpu()
        for rows, codes in each
    ]
    return torch.cat(states, 1)


def _read_note(part: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Returns what a training that was stopped has left, or the begin of a new one."""
    if not part.exists():
        return {"about": about}
    with reading(part, "is no training that was stopped, and can be deleted"):
        note = torch.load(part, map_location="cpu", weights_only=True)
    if different := [name for name in about if note["about"].get(name) != about[name]]:
        name = different[0]
        raise ValueError(
            f"{name} must be {note['about'].get(name)!r} to go on with the training in {part}, got {about[name]!r}; "
            "delete that file to begin anew"
        )
    return note


def _write_note(part: Path, note: dict[str, Any]) -> None:
    content = io.BytesIO()
    torch.save(note, content)
    write_new(part, content.getvalue(), overwrite=True)
