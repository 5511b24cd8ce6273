"""Profiles one pass with torch.profiler: where its time goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import profile, record_function

from janus_dola.arguments import Window, check_window
from janus_dola.engine.engine import Engine
from janus_dola.engine.jobs import Job, longest_of
from janus_dola.engine.plan import Plan, make_plan
from janus_dola.engine.slot_runner import SlotRunner
from janus_dola.images.files import write_new
from janus_dola.kernels.types import SamplingParams
from janus_dola.models.model import PromptRows
from janus_dola.settings import DrawSettings


def profile_pass(
    engine: Engine,
    rows: PromptRows,
    images: int,
    settings: DrawSettings,
    backend: str,
    launch: str,
    trace: Path,
    window: Window = "auto",
) -> str:
    """Returns a table: a pass' ten most expensive operations, on the GPU if there is one. Half-drawn images warm it up.

    Writes the timeline, which Perfetto and Chrome open, to `trace`, and replaces a file that is there. An argument out of
    range is a ValueError.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    window, plan = check_window(window), make_plan(engine.image_model, settings, "gumbel", backend, launch)
    on_gpu = engine.image_model.device.type == "cuda"
    params = settings.sampling_params(plan.layers)
    with half_way(engine, rows, images, plan, params, window) as runner, profile() as recorded:
        with record_function("pass"):
            runner.advance()
        if on_gpu:
            torch.cuda.synchronize(engine.image_model.device)
    with TemporaryDirectory() as folder:  # the profiler does not report what it cannot write
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        content = file.read_bytes()
    if not content.rstrip().endswith(b"}"):
        raise OSError(
            f"the timeline could not be written whole into the folder for temporary files, {file.parent.parent}"
        )
    trace.parent.mkdir(parents=True, exist_ok=True)
    write_new(trace, content, overwrite=True)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=60)


@contextmanager
def half_way(
    engine: Engine, rows: PromptRows, images: int, plan: Plan, params: SamplingParams, window: Window
) -> Iterator[SlotRunner]:
    """Yields a runner whose images, with the seeds 0, 1, ..., are drawn at least up to their middle."""
    jobs = [Job(seed, 0, seed, rows, seed, params) for seed in range(images)]
    with engine.runner(plan, images, longest_of(jobs), params, window) as runner:
        for job in jobs:
            runner.admit([job])
        while any(runner.decided(job) < engine.image_model.raster.length // 2 for job in runner.jobs):
            runner.advance()
        yield runner
