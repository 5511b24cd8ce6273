"""Times one decode step, last code to next code of all images, half way through an image: with DoLa and without."""

import floor
import models
import torch

from janus_dola.engine.backbone import key_shape, visible_length
from janus_dola.engine.decode import Decoder
from janus_dola.engine.graphs import StepGraphs
from janus_dola.engine.plan import plan

PROMPT_TOKENS = 40
HEADS = {"mini": "mini", "1B, 4 blocks": "1B", "1B": "1B", "7B": "7B"}


def table(names, images, engines):
    return {
        f"{name}-{count}-{engine}-{way}": {"name": name, "images": count, "engine": engine, "way": way}
        for name in names for count in images for engine in engines for way in models.DOLA
    }  # fmt: skip


@torch.no_grad()
def test_step(timed, device, name, images, engine, way):
    pipe = models.model(name, device)
    parts = pipe.parts
    planned = plan(parts, models.dola_of(name, way), 5.0, 1.0, "gumbel", "auto", engine)
    decoder = Decoder(
        parts, pipe._engine.code_table, planned, images, visible_length(PROMPT_TOKENS + max(64, parts.image_tokens))
    )
    visible = visible_length(PROMPT_TOKENS + parts.image_tokens // 2)
    if engine == "eager":
        decoder.try_steps([visible])
        step = decoder.step
    else:
        graphs = StepGraphs(decoder)
        graphs.capture([visible])
        step = graphs.replay
    weights = sum(weight.numel() for weight in parts.blocks.parameters())
    _, heads, _, size = key_shape(parts, 1, 1)
    key_values = 2 * parts.num_layers * heads * size * visible
    layers, dtype = len(planned.layers) + 1, parts.dtype
    timed(
        [lambda: step(visible)],
        floor.decode_step(weights, key_values, floor.SHAPES[HEADS[name]], layers, images, dtype),
        model=name, images=images, engine=engine, way=way, dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip


test_step.cases = {
    "cpu": table(["mini", "1B, 4 blocks"], [4], ["eager"]),
    "cuda": table(["1B"], [1, 4, 16, 32], ["graph"])
    | table(["1B"], [4], ["compile", "eager"])
    | table(["7B"], [1, 4, 16, 32], ["graph"])
    | table(["7B"], [16], ["compile", "eager"]),
}
