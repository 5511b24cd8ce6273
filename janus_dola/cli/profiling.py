"""Where the time of a pass goes, by torch.profiler."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from janus_dola.arguments import Window, check_window
from janus_dola.engine.capacity import positions, window_of
from janus_dola.engine.decoder import Decoder, visible_length
from janus_dola.engine.devices import undisturbed
from janus_dola.engine.plan import Plan, plan
from janus_dola.pipeline import JanusDoLa
from janus_dola.settings import DrawSettings

_OPERATIONS = 10
_PROMPT = "a large red circle on white"


def profile_pass(
    pipe: JanusDoLa,
    images: int,
    settings: DrawSettings,
    backend: str,
    launch: str,
    trace: Path,
    window: Window = "auto",
) -> str:
    """Records one pass, in the middle of images, after passes that warm up.

    Args:
        images: drawn at once.
        settings, backend, launch, window: as in `JanusDoLa.generate`.
        trace: file for the recorded timeline, which Perfetto and Chrome open.
    Returns:
        the most expensive operations, those on the GPU where there is one, as a table.
    Raises:
        ValueError: an argument is out of range.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    device, window = pipe.image_model.device, check_window(window)
    planned = plan(pipe.image_model, settings, "gumbel", backend, launch)
    codes_fed = window_of(images, pipe.image_model) if window == "auto" else window
    decoder, visible = half_way(pipe, images, replace(planned, window=codes_fed))
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with undisturbed(device), profile(activities=activities) as recorded:
        with record_function("pass"):
            decoder.run(visible)
        if on_gpu:
            torch.cuda.synchronize(device)
    trace.parent.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(trace))
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=order, row_limit=_OPERATIONS, max_name_column_width=60)


def half_way(pipe: JanusDoLa, images: int, planned: Plan) -> tuple[Decoder, int]:
    """Draws images up to their middle.

    Returns:
        the decoder, and the length that the next pass looks at.
    """
    image_model, (rows,) = pipe.image_model, pipe.encode(_PROMPT)
    longest = max(map(len, rows))
    with undisturbed(image_model.device):
        weights = pipe.engine.weights.read()
        decoder = Decoder(image_model, weights, planned, images, positions(image_model, longest, planned.window))
        decoder.try_out()
        decoder.admit(range(images), [rows] * images, range(images))

        def visible() -> int:
            return visible_length(longest + int(decoder.slots.decided.max()) - 1 + planned.window)

        while int(decoder.slots.decided.min()) < image_model.raster.length // 2:
            decoder.run(visible())
        return decoder, visible()
