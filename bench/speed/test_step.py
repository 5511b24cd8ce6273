"""Times one pass over images half way drawn, W codes of each fed, the codes decided: with DoLa and without."""

import pytest
import torch

from bench.speed import floor, models
from janus_dola.engine.plan import make_plan
from janus_dola.engine.profiling import half_way
from janus_dola.kernels.block_torch import buffer_shape
from janus_dola.models.contexts import undisturbed
from janus_dola.settings import DrawSettings

PROMPT = "a large red circle on white"
HEADS = {"mini": "mini", models.FEW_BLOCKS: "1B", "1B": "1B", "7B": "7B"}


def table(names, dtypes, images, windows, engines):
    return {
        f"{name}-{dtype}-{count}-{window}-{launch}-{way}": {
            "name": name, "dtype": dtype, "images": count, "window": window, "launch": launch, "way": way,
        }
        for name in names for dtype in dtypes for count in images for window in windows for launch in engines
        for way in models.DOLA
    }  # fmt: skip


@pytest.mark.filterwarnings("error:(launch|a pass could not be captured):UserWarning")
def test_step(timed, device, name, dtype, images, window, launch, way):
    pipe = models.model(name, device, dtype)
    image_model = pipe.image_model
    settings, (rows,) = DrawSettings(contrast=models.DOLA[way]), pipe.encode(PROMPT)
    plan = make_plan(image_model, settings, launch=launch)
    params = settings.sampling_params(plan.layers)
    if device == "cuda" and images > (most := pipe.engine.fit(max(map(len, rows)))):
        pytest.skip(f"this GPU has memory for {most} images")
    with half_way(pipe.engine, rows, images, plan, params, window) as runner, undisturbed(image_model.device):
        decoder, visible = runner.decoder, runner.visible
        blocks = decoder.weights.blocks
        weights = sum(
            matrix.weight.shape.numel()
            for block in blocks for matrix in (block.qkv.whole, block.output, block.gate_up.whole, block.down)
        )  # fmt: skip
        key_values = torch.Size(buffer_shape(blocks, 1, visible)).numel()
        timed(
            [lambda: decoder.run(visible)],
            floor.decode_pass(
                weights, key_values, floor.SHAPES[HEADS[name]], len(plan.layers) + 1, images, window,
                image_model.dtype, image_model.stored_dtype,
            ),
            model=name, images=images, window=window, launch=launch, way=way, dtype=dtype,
        )  # fmt: skip


test_step.cases = {
    "cpu": table(["mini"], ["float32", "float16"], [1, 4], [1, 8], ["eager"])
    | table([models.FEW_BLOCKS], ["float32", "float16", "bfloat16"], [1, 4], [1, 8], ["eager"]),
    "cuda": table(["1B", "7B"], ["bfloat16"], [1, 4, 16, 32], [1, 8], ["graph"])
    | table(["1B"], ["bfloat16"], [4], [1, 8], ["compile", "eager"])
    | table(["7B"], ["bfloat16"], [16], [1, 8], ["compile", "eager"]),
}
