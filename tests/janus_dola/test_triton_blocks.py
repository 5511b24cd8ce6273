"""Images drawn with all passes by our own kernels, under Triton's interpreter."""

import copy

import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.kernels.block import resolve_blocks
from janus_dola.kernels.block_torch import PassStart, buffer_shape
from janus_dola.models import adapt
from janus_dola.models.weights import WeightReader
from tests import deepseek_stand_in
from tests.kernels.blocks import count_launches
from tests.kernels.cases import CPU_BACKENDS

if "triton" not in CPU_BACKENDS:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

SETTINGS = {"dola": DoLaConfig(candidate_layers=[1]), "seed": 3}


@pytest.fixture(scope="module")
def small(mini):
    """Two blocks, 16 codes an image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepseek_stand_in, "BLOCKS", 2)
        patch.setattr(deepseek_stand_in, "HIDDEN", 32)
        model = deepseek_stand_in.MultiModalityCausalLM(len(mini.tokenizer)).eval().requires_grad_(False)
    return JanusDoLa(model, mini.tokenizer)


@pytest.fixture(scope="module")
def glm():
    """A GLM-Image of three blocks, 2 codes and then 8 an image."""
    pytest.importorskip("transformers.models.glm_image", reason="needs transformers 5")
    from janus_dola.models.families import glm_image as family
    from tests.janus_dola import glm_image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "_SMALL", 2)
        words = glm_image.tokenizer()
        return JanusDoLa(glm_image.model(words, 128, 64), words)


@pytest.mark.usefixtures("remembered_builtins")
@pytest.mark.parametrize(
    ("name", "prompts", "images", "window"),
    [("small", "a red circle", 2, 4), ("glm", ["a red circle", "x"], 1, 4)],
)
def test_images_are_those_drawn_on_tensors(name, prompts, images, window, monkeypatch, request):
    pipe = request.getfixturevalue(name)
    expected = pipe.generate(prompts, images, **SETTINGS, backend="torch", window=1)
    launched = count_launches(monkeypatch)
    out = pipe.generate(prompts, images, **SETTINGS, backend="triton", window=window)
    assert torch.equal(out.tokens, expected.tokens)
    assert torch.equal(out.premature_layers, expected.premature_layers)
    assert torch.allclose(out.jsd, expected.jsd, atol=1e-5)
    assert torch.allclose(out.log_probs, expected.log_probs, atol=1e-5)
    assert len(expected.tokens.unique()) > 6
    blocks, launches = (2, 6) if name == "small" else (3, 8)
    passes, most = launched["_attention_kernel"] // blocks, expected.tokens.shape[-1] - 1
    assert launched.total() == blocks * passes * launches + 3 * passes  # feed, weigh, accept
    assert passes >= out.passes.max() >= most // window
    assert (passes < most) == (window > 1)


@pytest.mark.usefixtures("remembered_builtins")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
def test_each_block_of_a_glm_is_that_on_tensors(glm, dtype, tolerance):
    """Its own weights and tables: gate and the other in one, positions on three axes, prompts of different length."""

    def states(backend, dtype):
        weights = WeightReader(adapt(copy.deepcopy(rounded).to(dtype))).read()
        run = resolve_blocks(backend, weights.blocks, window=3)
        assert (run.__module__ == "janus_dola.kernels.block_triton") == (backend == "triton")
        start = PassStart(prompt_tokens + torch.tensor([0, 4]), weights.rotary, 64, prompt_tokens)
        return run(x.to(dtype), weights.blocks, history.to(dtype), start, [1, 2]).double()

    rounded, prompt_tokens = copy.deepcopy(glm.model).to(dtype), torch.tensor([9, 20])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * 3, 64, generator=generator).to(dtype)
    blocks = WeightReader(glm.image_model).read().blocks
    history = torch.randn(buffer_shape(blocks, 2, 64), generator=generator).to(dtype)
    for ours, theirs in zip(states("triton", dtype), states("torch", torch.float64), strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
