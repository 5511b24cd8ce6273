"""Times whole images, prompt to pictures: our engine with and without DoLa against the plain loop and transformers' own."""

import models
import peers
import torch

from janus_dola.engine.pictures import to_images

PROMPT = "a large red circle on white"


def ours(engine):
    return lambda pipe, images, dola: pipe.generate(PROMPT, images, dola, engine=engine, strict=True)


def plain_loop(pipe, images, dola):
    return to_images(pipe.parts, peers.seed_loop(pipe, PROMPT, images, dola))


def transformers_loop(pipe, images, dola):
    return to_images(pipe.parts, peers.transformers_generate(pipe, PROMPT, images))


WAYS = {
    "ours, eager": ours("eager"),
    "ours, graph": ours("graph"),
    "plain loop": plain_loop,
    "transformers": transformers_loop,
}


def table(name, images, engines):
    pairs = [(f"ours, {engine}", way) for engine in engines for way in models.DOLA]
    pairs += [("plain loop", "baseline"), ("plain loop", "DoLa"), ("transformers", "baseline")]
    return {
        f"{name}-{images}-{loop}-{way}": {"name": name, "images": images, "loop": loop, "way": way}
        for loop, way in pairs
    }


def test_image(timed, device, benchmark, name, images, loop, way):
    pipe = models.model(name, device)
    pipe._engine.release()
    rounds = 3 if loop.startswith("ours") or device == "cpu" else 1
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    timed(
        [lambda: WAYS[loop](pipe, images, models.dola_of(name, way))],
        rounds=rounds,
        model=name, images=images, loop=loop, way=way, dtype=str(pipe.parts.dtype).removeprefix("torch."),
    )  # fmt: skip
    if device == "cuda":
        benchmark.extra_info["memory_bytes"] = torch.cuda.max_memory_allocated() - before


test_image.cases = {
    "cpu": table("mini", 4, ["eager"]) | table("1B, 4 blocks", 4, ["eager"]),
    "cuda": table("1B", 4, ["graph"]) | table("7B", 16, ["graph"]),
}
