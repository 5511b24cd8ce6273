"""16 bits on a CPU: weights packed, held once, the same image whatever else is drawn."""

import copy
from types import SimpleNamespace

import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine import capacity
from janus_dola.kernels.packed import Packed, can_pack, packing_of
from janus_dola.models.packed_linear import PackedLinear, unpack

PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]
needs_fbgemm = pytest.mark.skipif(not can_pack(), reason="this torch has no FBGEMM")


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def packed(request) -> JanusDoLa:
    if packing_of(getattr(torch, request.param)) is None:
        pytest.skip(f"this machine packs no {request.param}")
    return JanusDoLa.from_pretrained("mini", device="cpu", dtype=request.param)


@needs_fbgemm
@pytest.mark.parametrize("dola", [DoLaConfig(), None])
def test_codes_are_those_of_float32(mini, dola):
    """The mini model's weights are kept in float16, so that packing them loses nothing."""
    packed = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float16")
    assert packed.image_model.stored_dtype == torch.float16
    assert packed.image_model.dtype == torch.float32
    drawn, expected = (pipe.generate(PROMPTS, dola=dola, seed=2) for pipe in (packed, mini))
    assert torch.equal(drawn.tokens, expected.tokens)
    assert torch.allclose(drawn.jsd, expected.jsd, atol=1e-4)


@pytest.mark.skipif(packing_of(torch.bfloat16) is None, reason="this processor has no AMX")
def test_codes_are_those_of_plain_weights_in_bfloat16():
    packed, plain = (JanusDoLa.from_pretrained("mini", device="cpu", dtype="bfloat16") for _ in range(2))
    unpack(plain.model)
    assert (packed.image_model.is_packed, plain.image_model.is_packed) == (True, False)
    drawn, expected = (pipe.generate(PROMPTS, seed=2, window=4) for pipe in (packed, plain))
    assert torch.equal(drawn.tokens, expected.tokens)
    assert torch.equal(drawn.jsd, expected.jsd)


def test_an_image_has_the_same_bits_whatever_is_drawn_beside_it(packed):
    four = ["a yellow ring on black", *PROMPTS]
    images = dict(zip(four, packed.generate(four, seed=[9, 1, 2, 3], window=4).drawn, strict=True))
    others = packed.generate(["a blue cross on white", *PROMPTS[::-1]], seed=[7, 3, 2, 1], window=4).drawn
    for prompt, (other,) in zip(PROMPTS[::-1], others[1:], strict=True):
        (image,) = images[prompt]
        assert torch.equal(image.tokens, other.tokens)
        assert torch.equal(image.jsd, other.jsd)


def test_weights_are_held_once(packed, mini):
    held = {id(module.packed): module.packed for module in packed.model.modules() if isinstance(module, PackedLinear)}
    parameters = sum(parameter.numel() for parameter in packed.model.parameters())
    in_pack = sum(weight.shape.numel() for weight in held.values())
    biases = sum(
        module.bias.numel()
        for module in packed.model.modules()
        if getattr(module, "packed", None) and module.bias is not None
    )
    assert parameters + in_pack + biases == sum(parameter.numel() for parameter in mini.model.parameters())
    assert not any(type(module) is torch.nn.Linear for module in packed.image_model.blocks.modules())
    assert all(isinstance(block.qkv.whole.weight, Packed) for block in packed.engine.weights.read().blocks)


def test_a_packed_model_runs_as_a_module_is_copied_and_saved(packed, mini, tmp_path):
    tokens = torch.tensor([[5, 9, 11]])
    hidden, expected = (pipe.model.model.language_model(tokens).last_hidden_state for pipe in (packed, mini))
    assert torch.allclose(hidden.float(), expected, atol=1e-4 if hidden.dtype == torch.float32 else 0.1)
    copied = JanusDoLa(copy.deepcopy(packed.model), packed.tokenizer)
    assert torch.equal(copied.generate(PROMPTS[0]).tokens, packed.generate(PROMPTS[0]).tokens)
    packed.model.save_pretrained(tmp_path)
    packed.tokenizer.save_pretrained(tmp_path)
    again = JanusDoLa.from_pretrained(tmp_path, device="cpu", dtype=packed.image_model.stored_dtype)
    assert torch.equal(again.generate(PROMPTS[0]).tokens, packed.generate(PROMPTS[0]).tokens)


def test_where_torch_has_no_packed_products_float16_is_torchs_own(monkeypatch):
    monkeypatch.setattr("janus_dola.kernels.packed.can_pack", lambda: False)
    plain = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float16")
    assert plain.image_model.dtype == plain.image_model.stored_dtype == torch.float16
    assert plain.generate(PROMPTS[0]).tokens.shape[-1] == plain.image_model.image_tokens


@pytest.mark.parametrize(
    ("hidden_size", "dtype", "is_packed", "tiles", "windows"),
    [
        (512, torch.float32, False, True, [16, 8, 4, 1]),
        (512, torch.bfloat16, False, False, [16, 8, 4, 1]),
        (512, torch.bfloat16, True, True, [16, 16, 8, 1]),
        (2048, torch.float32, False, True, [4, 2, 1, 1]),
        (2048, torch.float32, True, True, [2, 1, 1, 1]),  # float16
        (2048, torch.bfloat16, True, True, [8, 8, 4, 1]),
    ],
)
def test_windows_on_a_cpu(monkeypatch, hidden_size, dtype, is_packed, tiles, windows):
    """Of 1, 2, 4 and 32 images with guidance."""
    monkeypatch.setattr(capacity, "has_amx", lambda: tiles)
    head, cpu = SimpleNamespace(hidden_size=hidden_size), torch.device("cpu")
    model = SimpleNamespace(device=cpu, dtype=dtype, is_packed=is_packed, head=head)
    assert [capacity.window_of(2 * images, model) for images in (1, 2, 4, 32)] == windows
