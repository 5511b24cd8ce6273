"""Times whole images: our engine with and without DoLa against the plain loop and transformers' own generation.

`make bench` runs it on a CPU: the mini model, and a Janus of 1B shape cut to 4 blocks and 36 codes, with random weights.
"""

import peers
import pytest
import shapes

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.pictures import to_images

PROMPT, IMAGES = "a large red circle on white", 4
MODELS = {
    "mini": lambda: JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32"),
    "1B, 4 blocks": lambda: shapes.random_janus("1B", blocks=4, codes_a_side=6),
}
DOLA = DoLaConfig(candidate_layers=[1, 2, 3])
WAYS = {
    "ours, baseline": lambda pipe: pipe.generate(PROMPT, IMAGES, dola=None),
    "ours, DoLa": lambda pipe: pipe.generate(PROMPT, IMAGES, dola=DOLA),
    "plain loop, baseline": lambda pipe: to_images(pipe.parts, peers.seed_loop(pipe, PROMPT, IMAGES, None)),
    "plain loop, DoLa": lambda pipe: to_images(pipe.parts, peers.seed_loop(pipe, PROMPT, IMAGES, DOLA)),
    "transformers, baseline": lambda pipe: to_images(pipe.parts, peers.transformers_generate(pipe, PROMPT, IMAGES)),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return request.param, MODELS[request.param]()


@pytest.mark.parametrize("way", WAYS)
def test_image(benchmark, model, way):
    name, pipe = model
    benchmark.group = f"{IMAGES} images, {name}"
    benchmark.pedantic(WAYS[way], args=(pipe,), rounds=3, warmup_rounds=1, iterations=1)
