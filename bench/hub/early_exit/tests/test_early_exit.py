"""Every backend draws what the formulas say, written here once more in float64."""

import math
import os

import pytest
import torch

import kernels

early_exit = kernels.get_kernel("OWNER/early-exit", version=0, trust_remote_code=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["reference", "torch", *(["triton"] if TRITON else [])]
ALPHA, CFG_WEIGHT = 0.1, 5.0


def stage():
    """Hidden states of 4 layers for 3 images and their unconditional rows, and a head with 257 codes."""
    random = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(4, 6, 64, generator=random).to(DEVICE)
    weight = (torch.randn(257, 64, generator=random) / 16).to(DEVICE)
    return hidden_states, early_exit.Head(torch.ones(64, device=DEVICE), 1e-6, weight)


def jensen_shannon(log_p, log_q):
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_are_those_of_the_formulas(backend):
    hidden_states, head = stage()
    h = hidden_states.double()
    z = h / (h.square().mean(-1, keepdim=True) + head.norm_eps).sqrt() @ head.code_weight.double().T
    conditional, unconditional = z.chunk(2, 1)
    log_q = (unconditional + CFG_WEIGHT * (conditional - unconditional)).log_softmax(-1)
    jsd, layer = jensen_shannon(log_q[3], log_q[:3]).max(0)
    scores = log_q[3] - log_q[layer, torch.arange(3, device=DEVICE)]
    scores[log_q[3] < log_q[3].amax(-1, keepdim=True) + math.log(ALPHA)] = -math.inf

    dola = early_exit.SamplingParams(
        "dola",
        {"log_alpha": math.log(ALPHA), "premature": -1, "final_weight": 1.0, "premature_weight": 1.0},
        cfg_weight=CFG_WEIGHT,
    )
    seeds = torch.tensor([0, 7, 2**40], device=DEVICE)
    drawn = early_exit.sample_codes(hidden_states, head, dola, seeds, position=5, backend=backend)
    assert torch.equal(drawn.layer, layer)
    assert torch.equal(drawn.code, (scores + early_exit.gumbel_noise(seeds, 5, 257)).argmax(-1))
    torch.testing.assert_close(drawn.jsd.double(), jsd, atol=1e-5, rtol=0)
    actual = early_exit.head_scores(hidden_states, head, dola, backend=backend).scores
    torch.testing.assert_close(actual.double(), scores, atol=1e-3, rtol=0)


@pytest.mark.kernels_ci
def test_divergence():
    log_p, log_q = torch.randn(2, 5, 999, dtype=torch.float64, device=DEVICE).log_softmax(-1)
    torch.testing.assert_close(early_exit.jensen_shannon(log_p, log_q), jensen_shannon(log_p, log_q))
    assert early_exit.jensen_shannon(log_p, log_p).eq(0).all()


@pytest.mark.kernels_ci
def test_noise_is_known_and_apart_for_each_image():
    """The first word of Philox-4x32-10 for a counter and a key of zeros is 0x6627E8D5 (Random123's known answers)."""
    seeds = torch.tensor([0, 1], device=DEVICE)
    noise = early_exit.gumbel_noise(seeds, 0, 1001)
    assert noise[0, 0].item() == pytest.approx(-math.log(-math.log1p(-0x6627E8D5 / 2**32)), rel=1e-5)
    assert torch.equal(noise[1:], early_exit.gumbel_noise(seeds[1:], 0, 1001))
