"""Times what other libraries have of the stage, where they are installed (they need a GPU), beside our sweep of 2 layers.

Liger-Kernel computes the JSD of two layers' log-probabilities, flashinfer draws from one layer's probabilities. Our sweep
does both and what lies between: log-softmax, choice, plausibility, contrast.
"""

import pytest
import torch

from bench.speed import cases

CODES = 16384


def liger(images, device):
    jsd = pytest.importorskip("liger_kernel.ops.jsd", reason="liger-kernel is not installed").LigerJSDFunction
    p, q = (torch.randn(images, CODES, device=device).log_softmax(-1) for _ in range(2))
    return lambda: jsd.apply(p, q)


def flashinfer(images, device):
    sampling = pytest.importorskip("flashinfer.sampling", reason="flashinfer is not installed")
    probabilities = torch.randn(images, CODES, device=device).softmax(-1)
    return lambda: sampling.sampling_from_probs(probabilities)


def ours(images, device):
    from janus_dola.kernels.gpu.codebook import codebook
    from janus_dola.kernels.gpu.sweep import sweep
    from janus_dola.kernels.types import Head, SamplingTensors

    weight = torch.randn(CODES, 256, device=device, dtype=torch.float16)
    head = Head(torch.ones(256, device=device, dtype=torch.float16), 1e-6, weight)
    parts = codebook(torch.randn(2, images, 256, device=device, dtype=torch.float16), head)
    seeds, position = torch.arange(images, device=device), torch.full((images,), 7, device=device)

    sampling = SamplingTensors.repeat(cases.GUIDED, images, parts[0])

    return lambda: sweep(*parts, sampling, seeds, position)


PIECES = {"our sweep, 2 layers": ours, "Liger-Kernel: JSD": liger, "flashinfer: draw": flashinfer}


def test_piece(timed, device, piece, images):
    timed([PIECES[piece](images, device)] * 20, graph=True, piece=piece, images=images)


test_piece.cases = {
    "cpu": {},
    "cuda": {f"{piece}-{images}": {"piece": piece, "images": images} for piece in PIECES for images in (4, 16)},
}
