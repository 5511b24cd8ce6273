"""8-bit weights of the blocks through torchao."""

import importlib.util

import pytest
import torch

from bench.experiments import quantized
from janus_dola import JanusDoLa

PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]


@pytest.mark.parametrize("how", ["int8", "fp8"])
def test_tokens_seldom_differ_and_weights_are_smaller(mini, how):
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32", quantize=how)
    expected, drawn = quantized.side_by_side(mini, pipe, PROMPTS)
    assert (drawn.code == expected.code).float().mean() > 0.9
    assert 0 < (drawn.jsd - expected.jsd).abs().mean() < 0.02
    weight = pipe.image_model.blocks[0].mlp.up_proj.weight
    assert weight.qdata.dtype == {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[how]
    assert pipe.image_model.head.code_weight.dtype == torch.float32


def test_side_by_side_with_itself_nothing_differs(mini):
    expected, drawn = quantized.side_by_side(mini, mini, PROMPTS)
    assert torch.equal(drawn.code, expected.code)
    assert torch.equal(expected.code, mini.generate(PROMPTS, seed=0).tokens.flatten())


def test_wrong_names_and_a_missing_package_are_told_before_anything_is_loaded(monkeypatch):
    with pytest.raises(ValueError, match=r"quantize must be None or one of \['int8', 'fp8'\], got 'int4'"):
        JanusDoLa.from_pretrained("nowhere", quantize="int4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"quantize='int8' needs torchao: pip install 'janus-dola\[quantize\]'"):
        JanusDoLa.from_pretrained("nowhere", quantize="int8")
