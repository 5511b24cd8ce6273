"""Times the early-exit stage (norm .. scores) of each backend: the batched pass against the layer-by-layer reference.

`make bench` runs it. Shapes are those of the image heads of Janus-Pro; weights are random, inputs never zero.
"""

import pytest
import torch

from janus_dola.kernels.early_exit import early_exit_scores
from janus_dola.kernels.types import Decoding
from tests.kernels.cases import random_head, random_hidden

SHAPES = {"1B": (2048, 2048, 16384)}  # D, E, V
LAYERS, IMAGES = 5, 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


@pytest.fixture(scope="module")
def case(shape, dtype):
    hidden, width, codes = shape
    return random_hidden(LAYERS, IMAGES, hidden, dtype, seed=0), random_head(hidden, width, codes, dtype, seed=0)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_head_stage(benchmark, case, backend):
    hidden_states, head = case
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()
    benchmark.group = f"head stage, {hidden_states.dtype}"
    benchmark.pedantic(
        early_exit_scores, args=(hidden_states, head, Decoding(), backend), rounds=20, warmup_rounds=3, iterations=1
    )
