"""What `python -m bench.evaluation` does: from a request to results, tables and figures in a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bench.evaluation.figures import check_available, draw_figures
from bench.evaluation.grid import parse_grid
from bench.evaluation.report import tables
from bench.evaluation.run import Evaluation, EvaluationSettings, check_counts
from bench.evaluation.task import CLIP_SCORE, EvaluationTask, Judge, geneval_task, mini_task
from janus_dola.arguments import MINI
from janus_dola.evaluate.clip import clip_scorer
from janus_dola.images.whole_files import write_whole
from janus_dola.models.checkpoint.hub import resolve
from janus_dola.models.storage import default_device
from janus_dola.pipeline import JanusDoLa

_CAPTIONS_DRAWN = 1000  # images per cell of the mini model, unless told otherwise


@dataclass(frozen=True)
class Request:
    """The options of `python -m bench.evaluation`."""

    model: str
    revision: str | None
    grid: tuple[str, ...]
    images: int | None
    prompts: Path | None
    outdir: Path
    parallel_size: int
    seed: int
    match: bool
    clip: str | None
    device: str | None
    dtype: str | None


def run_evaluation(request: Request, progress: bool = False) -> Iterator[str]:
    """Runs an evaluation, or the rest of one, and yields what is to be printed.

    Writes `evaluation.json`, `tables.md` and figures into the request's folder, beside what `run` lists.

    Raises:
        ValueError, FileNotFoundError: something in the request is wrong; nothing has been drawn then.
    """
    grid = parse_grid(request.grid)
    check_available()
    task = _task(request)
    folder = resolve(request.model, request.revision)
    commit = folder.name if folder.parent.name == "snapshots" else None  # as the hub's cache names its folders
    if request.revision is not None and commit is None:
        raise ValueError(f"revision goes with a repository on the hub, not with the model {request.model!r}")
    pipe = JanusDoLa.from_pretrained(folder, request.device, request.dtype)
    for cell in grid.cells():  # settings that this model cannot have
        cell.settings(pipe.image_model.num_layers, request.seed)
    settings = EvaluationSettings(
        model=request.model,
        revision=commit,
        prompts=task.source,
        images=len(task.prompts) * request.parallel_size,
        parallel_size=request.parallel_size,
        seed=request.seed,
        dtype=pipe.image_model.stored_as,
        judge=task.judge_name,
    )
    evaluation = Evaluation(pipe, task, settings, request.outdir, request.match, progress).run(grid)
    text = tables(evaluation)
    write_whole(request.outdir / "tables.md", text.encode())
    yield text
    for path in (request.outdir / "evaluation.json", *draw_figures(evaluation, request.outdir)):
        yield str(path)
    if task.metadata is not None:
        yield f"{request.outdir / 'images'}: for GenEval's scorer, one folder per cell"
    yield f"{evaluation['seconds'] / 60:.0f} minutes of drawing and measuring"


def _task(request: Request) -> EvaluationTask:
    if request.images is not None:
        check_counts(request.images, request.parallel_size)
    elif request.parallel_size < 1:
        raise ValueError(f"parallel_size must be an int >= 1, got {request.parallel_size}")
    if request.prompts is None:
        if request.model != MINI:
            raise ValueError(f"prompts must be given for the model {request.model!r}: the captions are {MINI}'s")
        if request.clip is not None:
            raise ValueError(f"clip goes with prompts: the captions of {MINI} are judged by its checker")
        images = request.images or _CAPTIONS_DRAWN
        check_counts(images, request.parallel_size)
        return mini_task(images // request.parallel_size)
    prompts = request.images // request.parallel_size if request.images is not None else None
    judge: Judge | None = None
    if request.clip is not None:
        scorer = clip_scorer(request.clip, request.device or default_device())

        def judge(images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, list[float]]:
            return {CLIP_SCORE: scorer(images, prompts)}

    return geneval_task(request.prompts, prompts, judge, request.clip)
