"""The distributions that codes were drawn from, read back from the codes alone."""

import math

import pytest
import torch

from bench.evaluation.sharpness import of_scores, sharpness
from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.kernels.philox import gumbel_noise
from janus_dola.settings import DrawSettings
from tests.deepseek_stand_in import MultiModalityCausalLM

# Of different lengths, so that one is padded.
PROMPTS = ["a large red circle on white", "a green cross", "a small blue square on grey"]


@pytest.fixture(scope="module")
def deepseek(mini) -> JanusDoLa:
    model = MultiModalityCausalLM(len(mini.tokenizer)).eval().requires_grad_(False)
    return JanusDoLa(model, mini.tokenizer)


@pytest.fixture(params=["transformers", "deepseek"])
def pipe(request, mini, deepseek) -> JanusDoLa:
    return {"transformers": mini, "deepseek": deepseek}[request.param]


@pytest.mark.parametrize(
    "dola",
    [None, DoLaConfig((1, 3), 0.1), DoLaConfig((1, 2), 0.0), DoLaConfig(alpha=0.3, premature_layer="final")],
    ids=["baseline", "dola", "no truncation", "truncation alone"],
)
def test_the_distributions_found_are_those_the_codes_were_drawn_from(pipe, dola):
    """The same noise draws the same codes from them, and layers and divergences are those recorded, up to rounding."""
    drawn = pipe.generate(PROMPTS, dola=dola, cfg_weight=3.0, temperature=1.1, seed=4)
    tokens = drawn.tokens[:, 0]
    actual = pipe.scores(PROMPTS, drawn.tokens, dola=dola, cfg_weight=3.0, temperature=1.1)
    layers, jsd, scores = actual.premature_layers[:, 0], actual.jsd[:, 0], actual.scores[:, 0]
    assert torch.allclose(jsd, drawn.jsd[:, 0], atol=1e-4)
    assert torch.equal(layers, drawn.premature_layers[:, 0])
    # The code drawn wins the race of F / T + G, but for what rounding does to F.
    noise = torch.stack([gumbel_noise(drawn.seeds[:, 0], t, scores.shape[-1]) for t in range(tokens.shape[1])], 1)
    race = scores / 1.1 + noise
    behind = race.amax(-1) - race.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert behind.max() < 1e-3


def test_sharpness_is_the_mean_over_the_codes_of_an_image(mini):
    tokens = mini.generate(PROMPTS, seed=1, temperature=0.8).tokens
    actual = sharpness(mini, PROMPTS, tokens[:, 0], DrawSettings(temperature=0.8))
    p = mini.scores(PROMPTS, tokens, temperature=0.8).log_distributions[:, 0].double().exp()
    assert torch.allclose(p.sum(-1), torch.ones(3, 64, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(actual.entropy.double(), torch.special.entr(p).sum(-1).mean(-1), atol=1e-5)
    assert torch.allclose(actual.top_probability.double(), p.amax(-1).mean(-1), atol=1e-5)


def test_entropy_of_distributions_that_are_known():
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [7.0, 7.0, -math.inf, -math.inf], [1.0, -math.inf, -math.inf, 0.0]])
    actual = of_scores(scores, 0.5)
    p = 1 / (1 + math.exp(-2))  # of the third: 1 / 0.5 against 0 / 0.5
    known = [math.log(4), math.log(2), -p * math.log(p) - (1 - p) * math.log(1 - p)]
    assert actual.entropy.tolist() == pytest.approx(known, abs=1e-6)
    assert actual.top_probability.tolist() == pytest.approx([0.25, 0.5, p])


def test_greedy_decoding_is_certain():
    actual = of_scores(torch.randn(5, 9), 0.0)
    assert actual.entropy.tolist() == [0] * 5
    assert actual.top_probability.tolist() == [1] * 5
