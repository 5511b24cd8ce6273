"""Where the time of a decode step goes, by torch.profiler."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from janus_dola.config import DoLaConfig
from janus_dola.engine.engine import Engine
from janus_dola.engine.plan import plan
from janus_dola.pipeline import JanusDoLa
from janus_dola.prompt import prompt_batch

_OPERATIONS = 10
_PROMPT = "a large red circle on white"


@torch.no_grad()
def profile_step(pipe: JanusDoLa, images: int, dola: DoLaConfig | None, backend: str, engine: str, trace: Path) -> str:
    """Records one decode step, in the middle of an image, after steps that warm up.

    Args:
        images: drawn at once.
        dola, backend, engine: as in `JanusDoLa.generate`.
        trace: file for the recorded timeline, which Perfetto and Chrome open.
    Returns:
        the most expensive operations, those on the GPU where there is one, as a table.
    Raises:
        ValueError: an argument is out of range.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    parts = pipe.parts
    planned = plan(parts, dola, 5.0, 1.0, "gumbel", backend, engine)
    rows = prompt_batch([pipe._prompt_ids(_PROMPT)] * images, pipe._special, parts.device)
    _, step = Engine(parts).begin(rows, torch.arange(images, device=parts.device), planned, strict=True)
    middle = parts.image_tokens // 2
    for position in range(1, middle):
        step(position)
    on_gpu = parts.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorded:
        with record_function("decode step"):
            step(middle)
        if on_gpu:
            torch.cuda.synchronize(parts.device)
    trace.parent.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(trace))
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=order, row_limit=_OPERATIONS, max_name_column_width=60)
