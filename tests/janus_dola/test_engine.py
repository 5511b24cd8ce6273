"""What the decode loop costs beside the model: no waiting, no memory."""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from janus_dola import DoLaConfig
from janus_dola.engine.decoder import Decoder

PROMPTS = ["a large red circle on white", "a green cross"]  # of different lengths
# What makes the host wait for the device: a number read, or a shape that depends on numbers.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::is_nonzero"}
METHODS = ("item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__")


class Waits(TorchDispatchMode):
    """Notes operations that wait, from the first step of the backbone on."""

    def __init__(self):
        super().__init__()
        self.steps, self.found = 0, []

    def note(self, name):
        if self.steps:
            self.found.append((self.steps, name))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in WAITS:
            self.note(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
@pytest.mark.parametrize(("sampler", "window"), [("gumbel", 1), ("gumbel", 8), ("multinomial", 1)])
def test_the_host_reads_nothing_in_a_pass_and_with_one_code_a_pass_nothing_between(
    mini, monkeypatch, dola, sampler, window
):
    """What a CPU looks at is left out: noise is made for few codes, by numpy, and the JSD for few images."""
    waits, inside = Waits(), []
    step = Decoder.step

    def watched(decoder, visible):
        waits.steps += 1
        before = len(waits.found)
        step(decoder, visible)
        inside.extend(waits.found[before:])

    monkeypatch.setattr(Decoder, "step", watched)
    monkeypatch.setattr("janus_dola.kernels.head.gumbel_max", lambda scores, *_: scores.argmax(-1))
    monkeypatch.setattr("janus_dola.kernels.contrast._can_look_into", lambda tensor: False)
    for name in METHODS:
        method = getattr(torch.Tensor, name)

        def noted(tensor, *args, name=name, method=method):
            waits.note(name)
            return method(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, noted)
    with waits:
        mini.generate(PROMPTS, dola=dola, sampler=sampler, window=window)
    assert inside == []
    if window == 1:
        assert waits.steps == 63
        assert {steps for steps, _ in waits.found} == {63}  # the images are read, after the last pass


def live_bytes() -> int:
    """Bytes of all tensors there are."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_dola_keeps_no_more_than_the_baseline_between_passes(mini, monkeypatch):
    step, seen = Decoder.step, []

    def weighed(decoder, visible):
        step(decoder, visible)
        seen.append(live_bytes() if len(seen) % 63 == 20 else None)

    monkeypatch.setattr(Decoder, "step", weighed)
    gc.collect()
    for dola in (None, DoLaConfig(candidate_layers=[2, 4, 6])):
        mini.generate(PROMPTS, dola=dola, window=1)
    baseline, with_dola = (size for size in seen if size is not None)
    # the last hidden states of the 4 prompt rows that are kept, for 3 layers more; and the layers' numbers
    assert with_dola - baseline == 3 * 4 * 192 * 4 + 3 * 8


def test_fifty_generations_leave_nothing_behind_even_without_the_garbage_collector(deepseek):
    deepseek.generate("a green cross")
    gc.collect()
    gc.disable()
    try:
        before = live_bytes()
        for seed in range(50):
            deepseek.generate("a green cross", seed=seed)
        assert live_bytes() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("implementation", ["eager", "flash_attention_2"])
def test_tokens_do_not_depend_on_how_the_model_would_compute_attention(mini, monkeypatch, implementation):
    expected = mini.generate(PROMPTS, seed=3).tokens
    monkeypatch.setattr(mini.image_model.config, "_attn_implementation", implementation)
    assert torch.equal(mini.generate(PROMPTS, seed=3).tokens, expected)
