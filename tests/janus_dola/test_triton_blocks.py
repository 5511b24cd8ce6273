"""Images drawn with all passes by our own kernels, under Triton's interpreter."""

import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa
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


@pytest.mark.usefixtures("remembered_builtins")
@pytest.mark.parametrize(("images", "window"), [(1, 4), (2, 1)])
def test_images_are_those_drawn_on_tensors(small, images, window, monkeypatch):
    expected = small.generate("a red circle", images, **SETTINGS, backend="torch", window=1)
    launched = count_launches(monkeypatch)
    out = small.generate("a red circle", images, **SETTINGS, backend="triton", window=window)
    assert torch.equal(out.tokens, expected.tokens)
    assert torch.equal(out.premature_layers, expected.premature_layers)
    assert torch.allclose(out.jsd, expected.jsd, atol=1e-5)
    assert torch.allclose(out.log_probs, expected.log_probs, atol=1e-5)
    assert len(expected.tokens.unique()) > 6
    passes = launched["_attention_kernel"] // 2
    assert launched.total() == 2 * passes * 6 + 3 * passes  # six a block; feed, weigh, accept
    assert passes >= out.passes.max() >= 15 // window
    assert (passes < 15) == (window > 1)
