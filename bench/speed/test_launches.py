"""Times the parts of the head stage: its sweep (logits to sampled code) in torch, and each fused launch alone."""

import torch

from bench.speed import cases, floor
from janus_dola.kernels import reference
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.kernels.types import SamplingTensors

LAYERS = 5


def sweep_cases(backends, shapes, images):
    return {
        f"{shape}-{count}-{backend}": {"backend": backend, "shape": shape, "images": count}
        for shape in shapes for count in images for backend in backends
    }  # fmt: skip


def torch_sweep(logits, sampling, seeds, position):
    """Draws codes from logits [L, B, V] as the torch backend does."""
    return gumbel_max(reference.decide(logits, sampling).scores, sampling.temperature, seeds, position)


def test_sweep(timed, device, backend, shape, images):
    sizes = floor.SHAPES[shape]
    work = floor.sweep(sizes, LAYERS, images)
    inputs = [
        (torch.randn(LAYERS, images, sizes.codes, device=device), torch.arange(images, device=device) + i)
        for i in range(cases.number_of_cases(work.bytes, device))
    ]
    position = torch.full((images,), 7, device=device)
    sampling = SamplingTensors.repeat(cases.GUIDED, images, inputs[0][0])
    sweep = torch_sweep
    if backend == "torch, compiled":
        torch.compiler.reset()
        sweep = torch.compile(torch_sweep, fullgraph=True)
    calls = [lambda logits=logits, seeds=seeds: sweep(logits, sampling, seeds, position) for logits, seeds in inputs]
    timed(calls, work, graph=True, rounds=7, backend=backend, shape=shape, images=images, dtype="float32")


test_sweep.cases = {
    "cpu": sweep_cases(["torch"], ["mini", "1B"], [4, 16]),
    "cuda": sweep_cases(["torch", "torch, compiled"], ["1B"], [1, 16]),
}


def test_launch(timed, device, launch, shape, images):
    """Times one of the launches of the triton backend."""
    from janus_dola.kernels.gpu.codebook import codebook
    from janus_dola.kernels.gpu.normalise import normalise
    from janus_dola.kernels.gpu.project import counters, project
    from janus_dola.kernels.gpu.sweep import sweep

    sizes, dtype = floor.SHAPES[shape], torch.bfloat16
    inputs = cases.random_cases(sizes, LAYERS, images, dtype, device)
    arrived = torch.zeros(counters(inputs[0].hidden_states, inputs[0].head) + images, dtype=torch.int32, device=device)
    normed = [normalise(case.hidden_states, case.head, None, arrived) for case in inputs]
    folded = [project(x, c.head, c.sampling.cfg_weight) for x, c in zip(normed, inputs, strict=True)]
    logits = [codebook(x, c.head) for x, c in zip(folded, inputs, strict=True)]
    every = list(zip(inputs, normed, folded, logits, strict=True))
    calls = {
        "normalise": [lambda c=c: normalise(c.hidden_states, c.head, None, arrived) for c in inputs],
        "project": [lambda c=c, x=x: project(x, c.head, c.sampling.cfg_weight, arrived) for c, x, _, _ in every],
        "codebook": [lambda c=c, x=x: codebook(x, c.head) for c, _, x, _ in every],
        "sweep": [lambda c=c, z=z: sweep(*z, c.sampling, c.seeds, c.position, arrived) for c, _, _, z in every],
    }
    works = {
        "normalise": floor.normalise(sizes, LAYERS, images, dtype),
        "project": floor.project(sizes, LAYERS, images, dtype),
        "codebook": floor.codebook(sizes, LAYERS, images, dtype),
        "sweep": floor.sweep(sizes, LAYERS, images),
    }
    timed(calls[launch], works[launch], graph=True, launch=launch, shape=shape, images=images, dtype="bfloat16")


test_launch.cases = {
    "cpu": {},
    "cuda": {
        f"{shape}-{images}-{launch}": {"launch": launch, "shape": shape, "images": images}
        for shape in ("1B", "7B") for images in (1, 16) for launch in ("normalise", "project", "codebook", "sweep")
    },
}  # fmt: skip
