"""The decode engine on a GPU: the time of a step, of whole images against two peers, and the memory that DoLa adds.

Models have real shapes and random weights. A step is timed by replaying its graph, half way through an image.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import floor
import peers
import shapes
import torch
from timing import Timing, eager

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.backbone import key_shape, visible_length
from janus_dola.engine.decode import Decoder
from janus_dola.engine.graphs import StepGraphs
from janus_dola.engine.pictures import to_images
from janus_dola.engine.plan import plan

STEP_IMAGES = (1, 4, 16, 32)
WHOLE_IMAGES = {"1B": 4, "7B": 16}
DOLA = {"baseline": None, "DoLa": DoLaConfig()}
VISIBLE = 320  # positions: the middle of an image
PROMPT = "a large red circle on white"


@torch.no_grad()
def step(pipe: JanusDoLa, images: int, dola: DoLaConfig | None, engine: str) -> Timing:
    """Seconds of one step; the engine "eager" includes what Python takes to launch it."""
    parts = pipe.parts
    planned = plan(parts, dola, 5.0, 1.0, "gumbel", "auto", engine)
    decoder = Decoder(parts, pipe._engine._code_table, planned, images, visible_length(64 + parts.image_tokens))
    if engine == "eager":
        decoder.try_steps([VISIBLE])
        return eager([lambda: decoder.step(VISIBLE)])
    graphs = StepGraphs(decoder)
    graphs.capture([VISIBLE])
    return eager([lambda: graphs.replay(VISIBLE)])


def steps(name: str, pipe: JanusDoLa, bandwidth: float, rate: float) -> Iterator[dict]:
    """A row for each number of images and engine: baseline, DoLa, their ratio and the share of the floor."""
    parts = pipe.parts
    weights = sum(weight.numel() for weight in parts.blocks.parameters())
    _, heads, _, size = key_shape(parts, 1, 1)
    for images in STEP_IMAGES:
        engines = ("graph", "compile", "eager") if images == WHOLE_IMAGES[name] else ("graph",)
        for engine in engines:
            found = {way: step(pipe, images, dola, engine) for way, dola in DOLA.items()}
            layers = len(DOLA["DoLa"].layers_to_read(parts.num_layers)) + 1
            work = floor.decode_step(
                weights, 2 * parts.num_layers * heads * size * VISIBLE, floor.SHAPES[name], layers, images, parts.dtype
            )
            yield {
                "shape": name,
                "images": images,
                "engine": engine,
                "floor_seconds": work.seconds(bandwidth, rate),
                "seconds": {way: asdict(timing) for way, timing in found.items()},
            }


def whole_images(name: str, pipe: JanusDoLa) -> dict:
    """Seconds from prompt to pictures: the median of three runs of ours, one run of each peer."""
    images = WHOLE_IMAGES[name]
    found: dict[str, float] = {}
    for engine in ("graph", "compile"):
        for way, dola in DOLA.items():
            draw = lambda dola=dola, engine=engine: pipe.generate(PROMPT, images, dola, engine=engine, strict=True)  # noqa: E731
            draw()
            found[f"ours, {engine}, {way}"] = sorted(_seconds(draw) for _ in range(3))[1]
    pipe._engine.release()
    for way, dola in DOLA.items():
        found[f"plain loop, {way}"] = _seconds(
            lambda dola=dola: to_images(pipe.parts, peers.seed_loop(pipe, PROMPT, images, dola))
        )
    found["transformers, baseline"] = _seconds(
        lambda: to_images(pipe.parts, peers.transformers_generate(pipe, PROMPT, images))
    )
    return {"shape": name, "images": images, "seconds": found}


def memory(name: str, pipe: JanusDoLa) -> dict:
    """Bytes at the most while images are drawn, beyond the model."""
    images, found = WHOLE_IMAGES[name], {}
    for way, dola in DOLA.items():
        pipe._engine.release()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        pipe.generate(PROMPT, images, dola, strict=True)
        found[way] = torch.cuda.max_memory_allocated() - before
    return {"shape": name, "images": images, "bytes": found}


def _seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(names: list[str], bandwidth: float, rate: float) -> Iterator[tuple[str, dict]]:
    """Rows of the tables "steps", "whole_images" and "memory", as they are measured."""
    for name in names:
        pipe = shapes.random_janus(name, device="cuda", dtype=torch.bfloat16)
        for row in steps(name, pipe, bandwidth, rate):
            yield "steps", row
        yield "memory", memory(name, pipe)
        yield "whole_images", whole_images(name, pipe)
        del pipe
        torch.cuda.empty_cache()
