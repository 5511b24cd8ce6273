"""Times the head stage, hidden states to sampled code: each backend, shape, number of images and of candidates."""

import torch

from bench.speed import cases, floor
from janus_dola.kernels import head_torch
from janus_dola.kernels.head import sample_codes
from janus_dola.kernels.sampling import gumbel_max

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def table(backends, shapes, images, candidates, dtypes):
    return {
        f"{shape}-{count}-{layers}-{dtype}-{backend}": {
            "backend": backend, "shape": shape, "images": count, "candidates": layers, "dtype": dtype,
        }
        for shape in shapes for count in images for layers in candidates for dtype in dtypes for backend in backends
    }  # fmt: skip


PLAIN = ("reference", "torch")
VOCABULARIES = ["2048 x 4096", "2048 x 16384", "2048 x 65536"]
CASES = {
    "cpu": table(PLAIN, ["mini"], [4], [3], ["float32"])
    | table(PLAIN, ["1B"], [1, 4, 16], [4], ["float32"])
    | table(PLAIN, ["1B"], [4], [1, 2, 8], ["float32"])
    | table(["torch"], ["1B"], [1, 4, 16], [4], ["float16"])
    | table(PLAIN, ["1B"], [4], [4], ["bfloat16"])
    | table(PLAIN, VOCABULARIES, [1], [4], ["float32"])
    | table(["torch"], ["text 8B"], [1], [8], ["bfloat16"]),
    "cuda": table(["triton", "torch", "reference"], ["1B", "7B"], [1, 4, 16, 32], [4], ["bfloat16"])
    | table(["triton, eager", "torch, eager", "torch, compiled"], ["1B", "7B"], [4], [4], ["bfloat16"])
    | table(["triton", "torch"], ["1B", "7B"], [4], [1, 2, 8], ["bfloat16"])
    | table(["triton", "torch"], [*VOCABULARIES, "text 8B"], [1], [4], ["bfloat16"]),
}


def batched_stage(case):
    """Runs the torch backend without its checks, which torch.compile takes whole."""
    scores = head_torch.head_scores(case.hidden_states, case.head, case.sampling).scores
    return gumbel_max(scores, case.sampling.temperature, case.seeds, case.position)


def stage(backend):
    """Returns a call as a pass makes it."""
    if backend == "torch, compiled":
        torch.compiler.reset()
        return torch.compile(batched_stage, fullgraph=True)
    name = backend.removesuffix(", eager")
    return lambda case: sample_codes(case.hidden_states, case.head, case.sampling, case.seeds, case.position, name)


def test_head_stage(timed, device, backend, shape, images, candidates, dtype):
    sizes, layers = floor.SHAPES[shape], candidates + 1
    inputs = cases.random_cases(sizes, layers, images, DTYPES[dtype], device)
    timed(
        cases.calls(inputs, stage(backend)),
        floor.head_stage(sizes, layers, images, inputs[0].hidden_states.dtype, DTYPES[dtype]),
        graph="eager" not in backend and backend != "reference",
        rounds=20 if device == "cuda" else 7,
        backend=backend, shape=shape, images=images, candidates=candidates, dtype=dtype,
    )  # fmt: skip


test_head_stage.cases = CASES


def test_logits(timed, device, shape, images, logits):
    """Times the kernels where many codes are plausible and where few are: their work per code depends on that."""
    sizes, dtype = floor.SHAPES[shape], torch.bfloat16
    inputs = cases.random_cases(sizes, 5, images, dtype, device, logits)
    timed(
        cases.calls(inputs, stage("triton")), floor.head_stage(sizes, 5, images, dtype), graph=True,
        shape=shape, images=images, logits=logits, dtype="bfloat16",
    )  # fmt: skip


test_logits.cases = {
    "cpu": {},
    "cuda": {
        f"{shape}-{images}-{logits}": {"shape": shape, "images": images, "logits": logits}
        for shape in ("1B", "7B") for images in (1, 16) for logits in ("flat", "peaked")
    },
}  # fmt: skip
