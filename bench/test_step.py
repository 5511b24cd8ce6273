"""Times one pass over images half way drawn, W codes of each fed, the codes decided: with DoLa and without."""

from dataclasses import replace

import floor
import models
import torch

from janus_dola.engine.plan import plan
from janus_dola.kernels.block import buffer_shape
from janus_dola.models.weights import WeightReader
from janus_dola.profiling import half_way

HEADS = {"mini": "mini", "1B, 4 blocks": "1B", "1B": "1B", "7B": "7B"}


def table(names, images, windows, engines):
    return {
        f"{name}-{count}-{window}-{engine}-{way}": {
            "name": name, "images": count, "window": window, "engine": engine, "way": way,
        }
        for name in names for count in images for window in windows for engine in engines for way in models.DOLA
    }  # fmt: skip


@torch.no_grad()
def test_step(timed, device, name, images, window, engine, way):
    pipe = models.model(name, device)
    parts = pipe.parts
    planned = replace(plan(parts, models.dola_of(name, way), 5.0, 1.0, engine=engine), window=window)
    decoder, visible = half_way(pipe, images, planned)
    weights = sum(weight.numel() for weight in parts.blocks.parameters())
    key_values = torch.Size(buffer_shape(WeightReader(parts).read().blocks, 1, visible)).numel()
    layers, dtype = len(planned.layers) + 1, parts.dtype
    timed(
        [lambda: decoder.run(visible)],
        floor.decode_pass(weights, key_values, floor.SHAPES[HEADS[name]], layers, images, window, dtype),
        model=name, images=images, window=window, engine=engine, way=way, dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip


test_step.cases = {
    "cpu": table(["mini", "1B, 4 blocks"], [1, 4], [1, 8], ["eager"]),
    "cuda": table(["1B", "7B"], [1, 4, 16, 32], [1, 8], ["graph"])
    | table(["1B"], [4], [1, 8], ["compile", "eager"])
    | table(["7B"], [16], [1, 8], ["compile", "eager"]),
}
