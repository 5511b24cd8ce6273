"""What the decode loop costs beside the model: no waiting, no memory."""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from janus_dola import DoLaConfig
from janus_dola.engine.backbone import Backbone
from janus_dola.models import find_parts

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
@pytest.mark.parametrize("sampler", ["gumbel", "multinomial"])
def test_nothing_is_read_by_the_host_before_the_images_are_done(mini, monkeypatch, dola, sampler):
    waits = Waits()
    step = Backbone.step

    def counted(backbone, embeddings, visible):
        waits.steps += 1
        step(backbone, embeddings, visible)

    monkeypatch.setattr(Backbone, "step", counted)
    for name in METHODS:
        method = getattr(torch.Tensor, name)

        def noted(tensor, *args, name=name, method=method):
            waits.note(name)
            return method(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, noted)
    with waits:
        mini.generate(PROMPTS, dola=dola, sampler=sampler)
    assert waits.steps == 63
    assert {steps for steps, _ in waits.found} == {63}  # the images are read, after the last step


def live_bytes() -> int:
    """Bytes of all tensors there are."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_dola_adds_the_hidden_states_of_its_layers_and_no_more(mini, monkeypatch):
    step, seen = Backbone.step, []

    def weighed(backbone, embeddings, visible):
        step(backbone, embeddings, visible)
        if len(seen) % 63 == 20:
            seen.append(live_bytes())
        else:
            seen.append(None)

    monkeypatch.setattr(Backbone, "step", weighed)
    gc.collect()
    for dola in (None, DoLaConfig(candidate_layers=[2, 4, 6])):
        mini.generate(PROMPTS, dola=dola)
    baseline, with_dola = (size for size in seen if size is not None)
    assert with_dola - baseline == 3 * 4 * 192 * 4 + 3 * 8  # layers, rows, hidden size, bytes; and the layers' numbers


def test_fifty_generations_leave_nothing_behind_even_without_the_garbage_collector(mini):
    mini.generate("a green cross")
    gc.collect()
    gc.disable()
    try:
        before = live_bytes()
        for seed in range(50):
            mini.generate("a green cross", seed=seed)
        assert live_bytes() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_tokens_do_not_depend_on_how_attention_is_computed(mini, implementation):
    expected = mini.generate(PROMPTS, seed=3).tokens
    config = mini.parts.config
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        assert torch.equal(mini.generate(PROMPTS, seed=3).tokens, expected)
    finally:
        config._attn_implementation = before


def test_attention_that_takes_no_mask_is_refused(mini):
    config = find_parts(mini.model).config
    before = config._attn_implementation
    config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(ValueError, match="attn_implementation must be 'sdpa' or 'eager', got 'flash_attention_2'"):
            mini.generate(PROMPTS)
    finally:
        config._attn_implementation = before
