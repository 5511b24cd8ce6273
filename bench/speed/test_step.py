"""Times one pass over images half way drawn, W codes of each fed, the codes decided: with DoLa and without."""

from dataclasses import replace

import torch

from bench.speed import floor, models
from janus_dola.cli.profiling import half_way
from janus_dola.engine.plan import plan
from janus_dola.kernels.block_torch import buffer_shape
from janus_dola.settings import DrawSettings

HEADS = {"mini": "mini", "1B, 4 blocks": "1B", "1B": "1B", "7B": "7B"}


def table(names, dtypes, images, windows, engines):
    return {
        f"{name}-{dtype}-{count}-{window}-{launch}-{way}": {
            "name": name, "dtype": dtype, "images": count, "window": window, "launch": launch, "way": way,
        }
        for name in names for dtype in dtypes for count in images for window in windows for launch in engines
        for way in models.DOLA
    }  # fmt: skip


@torch.no_grad()
def test_step(timed, device, name, dtype, images, window, launch, way):
    pipe = models.model(name, device, dtype)
    image_model = pipe.image_model
    planned = replace(plan(image_model, DrawSettings(dola=models.dola_of(name, way)), launch=launch), window=window)
    decoder, visible = half_way(pipe, images, planned)
    blocks = decoder.weights.blocks
    matrices = (matrix for block in blocks for matrix in (block.qkv, block.output, block.gate_up, block.down))
    weights = sum(matrix.weight.shape.numel() for matrix in matrices)
    key_values = torch.Size(buffer_shape(blocks, 1, visible)).numel()
    timed(
        [lambda: decoder.run(visible)],
        floor.decode_pass(
            weights, key_values, floor.SHAPES[HEADS[name]], len(planned.layers) + 1, images, window, image_model.dtype,
            image_model.stored_dtype,
        ),
        model=name, images=images, window=window, launch=launch, way=way, dtype=dtype,
    )  # fmt: skip


test_step.cases = {
    "cpu": table(["mini"], ["float32", "float16"], [1, 4], [1, 8], ["eager"])
    | table(["1B, 4 blocks"], ["float32", "float16", "bfloat16"], [1, 4], [1, 4], ["eager"]),
    "cuda": table(["1B", "7B"], ["bfloat16"], [1, 4, 16, 32], [1, 8], ["graph"])
    | table(["1B"], ["bfloat16"], [4], [1, 8], ["compile", "eager"])
    | table(["7B"], ["bfloat16"], [16], [1, 8], ["compile", "eager"]),
}
