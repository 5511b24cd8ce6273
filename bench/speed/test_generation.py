"""Times whole images, prompt to pictures: our engine with and without DoLa against the plain loop and transformers' own."""

import pytest
import torch

from bench.speed import models, peers

PROMPT = "a large red circle on white"
CUT = 64  # codes of the plain loop on a GPU, where its time is scaled to whole images: for it, since no picture is decoded


def ours(engine):
    def draw(pipe, images, dola, window):
        return pipe.generate(PROMPT, images, dola=dola, launch=engine, window=window).passes

    return draw


def plain_loop(pipe, images, dola, window):
    if pipe.image_model.device.type == "cuda":  # cut; `test_image` scales
        peers.seed_loop(pipe, PROMPT, images, dola, most=CUT)
    else:
        peers.decode_pixels(pipe, peers.seed_loop(pipe, PROMPT, images, dola))


def transformers_loop(pipe, images, dola, window):
    peers.decode_pixels(pipe, peers.transformers_generate(pipe, PROMPT, images))


# Each returns the passes that images took, or None for one code a pass.
LOOPS = {
    "ours, eager": ours("eager"),
    "ours, graph": ours("graph"),
    "plain loop": plain_loop,
    "transformers": transformers_loop,
}


def table(name, images, engine, dtype, peers=True):
    rows = [(f"ours, {engine}", window, way) for window in (1, "auto") for way in models.DOLA]
    if peers:
        rows += [("plain loop", 1, "baseline"), ("plain loop", 1, "DoLa"), ("transformers", 1, "baseline")]
    return {
        f"{name}-{dtype}-{images}-{loop}-{window}-{way}": {
            "name": name, "dtype": dtype, "images": images, "loop": loop, "window": window, "way": way,
        }
        for loop, window, way in rows
    }  # fmt: skip


@pytest.mark.filterwarnings("error:(launch|a pass could not be captured):UserWarning")
def test_image(timed, device, benchmark, name, dtype, images, loop, window, way):
    pipe, passes = models.model(name, device, dtype), []
    pipe.engine.release()
    rounds = 3 if loop.startswith("ours") or device == "cpu" else 1
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    timed(
        [lambda: passes.append(LOOPS[loop](pipe, images, models.DOLA[way], window))],
        rounds=rounds,
        model=name, images=images, loop=loop, window=window, way=way, dtype=dtype,
    )  # fmt: skip
    if loop == "plain loop" and device == "cuda":
        benchmark.extra_info["calls"] = CUT / pipe.image_model.image_tokens
    of_each = 1.0 if passes[-1] is None else ((pipe.image_model.image_tokens - 1) / passes[-1].float()).mean().item()
    benchmark.extra_info["codes_a_pass"] = of_each
    if device == "cuda":
        benchmark.extra_info["memory_bytes"] = torch.cuda.max_memory_allocated() - before


test_image.cases = {
    "cpu": {
        case: row
        for name in ("mini", models.FEW_BLOCKS) for images in (1, 4) for dtype in ("float32", "float16")
        for case, row in table(name, images, "eager", dtype, peers=dtype == "float32").items()
    },
    "cuda": {
        case: row
        for name, images in (("1B", 1), ("1B", 4), ("7B", 1), ("7B", 16))
        for case, row in table(name, images, "graph", "bfloat16").items()
    },
}  # fmt: skip
