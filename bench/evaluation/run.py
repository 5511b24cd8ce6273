"""All cells of a grid into a folder; cells that are there already, as they were written, are kept.

<outdir>/settings.json     what all cells share; a folder with other settings is refused
<outdir>/cells/<cell>.json  what was measured in a cell, image by image, and the digests of its images
<outdir>/images/<cell>/    its images in GenEval's layout, where the prompts are GenEval's, and recipe.json: how
<outdir>/evaluation.json   means and intervals of all cells of the grid
"""

import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm

import janus_dola
from bench.evaluation.grid import Cell, Grid, layer_set
from bench.evaluation.matching import match_temperature
from bench.evaluation.measure import Sampling, measure
from bench.evaluation.metrics import METRICS, Bootstrap, per_prompt
from bench.evaluation.task import EvaluationTask
from janus_dola.batch.folder import checked, file_digest, with_checksum
from janus_dola.batch.readers import parse_json, shown
from janus_dola.evaluate.geneval import place_for
from janus_dola.images.outputs import DrawnImage
from janus_dola.images.recipe import Recipe, save_image
from janus_dola.images.whole_files import write_whole
from janus_dola.models.checkpoint.hub import public_name
from janus_dola.pipeline import JanusDoLa

_MATCHED_ON = 64  # images, at most: the first ones of each cell


@dataclass(frozen=True)
class EvaluationSettings:
    """What all cells of an evaluation share.

    Raises:
        ValueError: a value is out of range.
    """

    model: str
    revision: str | None  # the commit that was loaded, of a repository on the hub
    prompts: str  # where they come from
    images: int  # per cell
    parallel_size: int  # images per prompt
    seed: int  # of the first image, and of the layers called "random"
    dtype: str
    judge: str | None  # what scores the images

    def __post_init__(self) -> None:
        check_counts(self.images, self.parallel_size)
        if self.seed < 0:
            raise ValueError(f"seed must be an int >= 0, got {self.seed}")


def check_counts(images: int, parallel_size: int) -> None:
    """Raises ValueError where `images` is not one or more times `parallel_size`."""
    if parallel_size < 1:
        raise ValueError(f"parallel_size must be an int >= 1, got {parallel_size}")
    if images < 1 or images % parallel_size:
        raise ValueError(f"images must be a multiple of parallel_size, {parallel_size}, got {images}")


class Evaluation:
    """Measures the cells of a grid.

    Args:
        pipe: the model.
        task: prompts and judge; as many prompts as `settings` say images.
        settings: what all cells share.
        outdir: folder for the results.
        match: draws, for each cell with the layers "auto", also a baseline whose temperature gives it the same entropy.
        progress: shows a bar.
    Raises:
        ValueError: `outdir` holds an evaluation with other settings, or with unknown ones.
    """

    def __init__(
        self,
        pipe: JanusDoLa,
        task: EvaluationTask,
        settings: EvaluationSettings,
        outdir: Path,
        match: bool = True,
        progress: bool = False,
    ) -> None:
        self._pipe, self._task, self._settings, self._outdir, self._match = pipe, task, settings, outdir, match
        self._num_layers = pipe.image_model.num_layers
        self._baseline_entropies: dict[tuple[float, float], float] = {}  # by guidance and temperature
        _claim(outdir / "settings.json", asdict(settings))
        self._bar = tqdm(unit="image", disable=not progress)

    def run(self, grid: Grid) -> dict[str, Any]:
        """Measures every cell that is not there yet; writes and returns what `evaluation.json` holds."""
        cells = grid.cells()
        to_match = {cell for cell in cells if self._match and cell.layers == "auto" and cell.temperature > 0}
        self._bar.reset((len(cells) + len(to_match)) * self._settings.images)
        measured: dict[str, dict[str, Any]] = {}
        for cell in cells:
            values = self._measured(cell.name, partial(self._draw, cell.name, self._sampling(cell)))
            measured[cell.name] = {**values, "cell": cell}
            if cell in to_match:
                baseline = self._measured(
                    matched_name(cell), partial(self._draw_matched, cell, values["values"]["entropy"])
                )
                measured[matched_name(cell)] = {**baseline, "cell": cell}
        self._bar.close()
        settings = self._settings
        evaluation = {
            "settings": asdict(settings),
            "grid": asdict(grid),
            "layers": {name: layer_set(name, self._num_layers, settings.seed) for name in grid.layers},
            "made with": _made_with(self._pipe),
            "seconds": round(sum(cell["seconds"] for cell in measured.values())),
            "cells": summaries(measured, settings.images // settings.parallel_size),
        }
        _write(self._outdir / "evaluation.json", _a_cell_a_line(evaluation))
        return evaluation

    def _measured(self, name: str, draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns what is in the cell's file; if there is none, what `draw` measures."""
        path = self._outdir / "cells" / f"{name}.json"
        kept = self._kept(path)
        if kept is not None:
            self._bar.update(self._settings.images)
            return kept
        if path.exists():
            warnings.warn(f"{path}, or an image of its cell, is not as it was written: measured again", stacklevel=4)
        self._bar.set_description(name)
        measured = {**draw(), "settings": asdict(self._settings), "files": self._files(name)}
        _write(path, json.dumps(with_checksum(measured)))
        return measured

    def _kept(self, path: Path) -> dict[str, Any] | None:
        """Returns what a cell's file holds, if it and the cell's images are as they were written."""
        kept = checked(path.read_bytes()) if path.is_file() else None
        if kept is None or kept.get("settings") != asdict(self._settings):
            return None
        whole = all(file_digest(self._outdir / name) == its_digest for name, its_digest in kept["files"].items())
        return kept if whole else None

    def _files(self, name: str) -> dict[str, str | None]:
        """Returns the digests of a cell's images and what lies beside them, by path."""
        paths = sorted(path for path in (self._outdir / "images" / name).rglob("*") if path.is_file())
        return {path.relative_to(self._outdir).as_posix(): file_digest(path) for path in paths}

    def _draw(self, name: str, sampling: Sampling) -> dict[str, Any]:
        keep = None
        if self._task.metadata is not None:
            folder = self._outdir / "images" / name
            _write(folder / "recipe.json", json.dumps(self._recipe(sampling), indent=1))
            keep = self._image_writer(folder, sampling)
        return {
            **measure(self._pipe, self._task, sampling, keep, self._bar.update),
            "temperature": sampling.settings.temperature,
        }

    def _draw_matched(self, cell: Cell, target: list[float]) -> dict[str, Any]:
        """Draws the baseline at the temperature that gives it the entropy of `cell`; no values if there is none."""
        begin = time.perf_counter()
        prompts = max(1, _MATCHED_ON // self._settings.parallel_size)
        few = replace(self._task, prompts=self._task.prompts[:prompts], judge=None, metadata=None)
        images = len(few.prompts) * self._settings.parallel_size

        def entropy_at(temperature: float) -> float:
            known = self._baseline_entropies
            if (cell.cfg, temperature) not in known:
                values = measure(self._pipe, few, self._sampling(cell.baseline, temperature))["values"]
                known[cell.cfg, temperature] = float(np.mean(values["entropy"]))
            return known[cell.cfg, temperature]

        match = match_temperature(entropy_at, float(np.mean(target[:images])))
        matched = asdict(match) | {"images": images} if match is not None else None
        searched = time.perf_counter() - begin
        if match is None:
            self._bar.update(self._settings.images)
            return {"match": None, "seconds": round(searched, 1)}
        drawn = self._draw(matched_name(cell), self._sampling(cell.baseline, match.temperature))
        return {**drawn, "match": matched, "seconds": round(drawn["seconds"] + searched, 1)}

    def _sampling(self, cell: Cell, temperature: float | None = None) -> Sampling:
        settings = cell.settings(self._num_layers, self._settings.seed)
        if temperature is not None:
            settings = replace(settings, temperature=temperature)
        return Sampling(settings, self._settings.parallel_size, self._settings.seed)

    def _image_writer(self, folder: Path, sampling: Sampling) -> Callable[[DrawnImage], None]:
        metadata, settings = self._task.metadata or [], self._settings

        def keep(drawn: DrawnImage) -> None:
            recipe = Recipe(
                model=public_name(settings.model),
                prompt=self._task.prompts[drawn.prompt],
                seed=drawn.seed,
                settings=sampling.settings,
                dtype=settings.dtype,
            )
            save_image(drawn.image, place_for(folder, drawn.prompt, drawn.k, metadata[drawn.prompt]), recipe)

        return keep

    def _recipe(self, sampling: Sampling) -> dict[str, Any]:
        """Returns all that is needed to draw the images of a cell again."""
        return {
            **asdict(self._settings),
            **sampling.settings.to_json(),
            "sampler": "gumbel",
            "seeds": "image k of prompt i has the seed  seed + i * parallel_size + k",
            "made with": _made_with(self._pipe),
        }


def matched_name(cell: Cell) -> str:
    """Names the baseline whose temperature is matched to `cell`."""
    return f"{cell.name}-matched"


def summaries(measured: dict[str, dict[str, Any]], prompts: int) -> list[dict[str, Any]]:
    """Computes means and intervals of each cell, and of its differences from the baseline and the matched baseline.

    Args:
        measured: by name, what `measure` gave, with the "cell" it belongs to.
    """
    bootstrap = Bootstrap(prompts)
    values = {
        name: {key: per_prompt(numbers, prompts) for key, numbers in result.get("values", {}).items()}
        for name, result in measured.items()
    }
    rows = []
    for name, result in measured.items():
        cell: Cell = result["cell"]
        others = {"from baseline": cell.baseline.name, "from matched": matched_name(cell)}
        metrics = {}
        for metric in METRICS:
            if metric.key not in values[name]:
                continue
            own = values[name][metric.key]
            metrics[metric.key] = {"value": bootstrap.estimate(own)} | {
                title: bootstrap.estimate(own - values[other][metric.key])
                for title, other in others.items()
                if other != name and metric.key in values.get(other, {})
            }
        rows.append(
            {
                "name": name,
                "layers": cell.layers,
                "alpha": cell.alpha,
                "cfg": cell.cfg,
                "grid temperature": cell.temperature,
                "temperature": result.get("temperature"),  # a matched baseline has another than the grid
                "is baseline": cell.is_baseline,
                "is matched baseline": "match" in result,
                "match": result.get("match"),
                "metrics": {key: {title: each.rounded() for title, each in e.items()} for key, e in metrics.items()},
                "raster": result.get("raster"),
                "seconds": result["seconds"],
            }
        )
    return rows


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Marks a folder as that of an evaluation with these settings."""
    if not path.exists():
        held = next((path.parent / name for name in ("cells", "images") if (path.parent / name).exists()), None)
        if held is not None:
            raise ValueError(f"outdir {path.parent} holds {held.name}, but no {path.name} that says how they were made")
        _write(path, json.dumps(settings, indent=1))
        return
    try:
        there = parse_json(path.read_bytes())
        if not isinstance(there, dict):
            raise ValueError(f"got {shown(there)}")
    except ValueError as error:
        raise ValueError(f"{path} must be as an evaluation wrote it: {error}") from None
    other = [
        f"{name} {there.get(name)!r}, not {value!r}" for name, value in settings.items() if there.get(name) != value
    ]
    if other:
        raise ValueError(f"outdir {path.parent} holds an evaluation with other settings: {'; '.join(other)}")


def _a_cell_a_line(evaluation: dict[str, Any]) -> str:
    cells = ",\n".join(json.dumps(cell) for cell in evaluation["cells"])
    rest = {key: value for key, value in evaluation.items() if key != "cells"}
    return json.dumps(rest, indent=1).removesuffix("\n}") + f',\n "cells": [\n{cells}\n]}}'


def _write(path: Path, text: str) -> None:
    """Writes a file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"{text}\n".encode())


def _made_with(pipe: JanusDoLa) -> dict[str, Any]:
    return {
        "janus-dola": janus_dola.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": str(pipe.image_model.device),
        "threads": torch.get_num_threads(),
    }
