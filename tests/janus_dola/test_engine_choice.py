"""The engines "graph" and "compile" as far as they go without a GPU: graphs are replaced by the step itself."""

import functools
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from janus_dola import DoLaConfig
from janus_dola.engine import compiled, engine, plan
from janus_dola.engine.decode import Decoder

PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]
LONG = "a large red circle on white" + " and a green cross" * 30


class Steps:
    """Stands in for `StepGraphs`: notes what is captured, and runs the step instead of replaying it."""

    made: list["Steps"] = []  # noqa: RUF012

    def __init__(self, decoder):
        self.decoder, self.captured = decoder, []
        Steps.made.append(self)

    def capture(self, visible_lengths):
        missing = [visible for visible in visible_lengths if visible not in self.captured]
        self.decoder.try_steps(missing)
        self.captured += missing

    def replay(self, visible):
        assert visible in self.captured
        self.decoder.step(visible)


@pytest.fixture
def steps(mini, monkeypatch):
    """A model whose device is said to have graphs."""
    for module in (plan, engine):
        monkeypatch.setattr(module, "has_graphs", lambda device: True)
    monkeypatch.setattr(engine, "StepGraphs", Steps)
    monkeypatch.setattr(mini, "_engine", engine.Engine(mini.parts))
    Steps.made = []
    return Steps.made


@pytest.mark.parametrize("sampler", ["gumbel", "multinomial"])
@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
def test_batches_filled_up_to_a_bucket_draw_the_same(mini, steps, dola, sampler):
    for prompts in (PROMPTS, PROMPTS[:1]):
        expected = mini.generate(prompts, dola=dola, sampler=sampler, seed=4, engine="eager")
        found = mini.generate(prompts, dola=dola, sampler=sampler, seed=4)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.allclose(found.jsd, expected.jsd, atol=1e-5)
    buckets = [4, 1] if sampler == "gumbel" else [3, 1]
    assert [made.decoder.images for made in steps] == buckets


def test_graphs_are_kept_for_batches_of_the_same_kind(mini, steps):
    images = list(mini.stream(PROMPTS * 3, max_images=3))
    assert len(images) == 9
    assert len(steps) == 1
    mini.generate(PROMPTS)
    assert len(steps) == 1
    mini.generate(PROMPTS, temperature=0.5)
    assert len(steps) == 2


def test_a_longer_prompt_gets_graphs_of_its_own(mini, steps):
    expected = mini.generate(LONG, engine="eager").tokens
    mini.generate("a green cross")
    assert torch.equal(mini.generate(LONG).tokens, expected)
    assert steps[0].captured == [64, 128]
    assert steps[1].captured[-1] == steps[1].decoder.capacity > 192


def test_a_batch_leaves_nothing_to_the_next(mini, steps):
    expected = mini.generate(PROMPTS, seed=4, engine="eager").tokens
    mini.generate(PROMPTS[::-1], seed=1)
    decoder = steps[0].decoder
    for name, tensor in vars(decoder).items():
        if isinstance(tensor, torch.Tensor) and name not in ("_code_table", "_layer_of_slot"):
            tensor.fill_(7 if tensor.dtype == torch.int64 else float("nan"))
    for block in decoder._backbone._cache.blocks:
        block.keys.fill_(float("nan"))
        block.values.fill_(float("nan"))
    assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)
    assert len(steps) == 1


def test_a_failed_capture_is_told_once_and_the_images_come_all_the_same(mini, steps, monkeypatch):
    expected = mini.generate(PROMPTS, seed=4, engine="eager").tokens

    def fail(self, visible_lengths):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Steps, "capture", fail)
    with pytest.warns(UserWarning, match="engine 'graph' failed, and the step runs eagerly instead: operation not"):
        assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mini.generate(PROMPTS, seed=4)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        mini.generate(PROMPTS, seed=4, strict=True)


def test_no_memory_is_not_a_failed_capture(mini, steps, monkeypatch):
    def fail(self, visible_lengths):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Steps, "capture", fail)
    with pytest.raises(torch.OutOfMemoryError):
        mini.generate(PROMPTS)
    assert mini._engine.kept_bytes == 0


def test_what_is_kept_is_counted_and_can_be_given_back(mini, steps):
    mini.generate(PROMPTS)
    assert (
        mini._engine.kept_bytes == 2 * 4 * 128 * 8 * 192 * 2 * 4
    )  # rows, positions, blocks, numbers, keys and values, bytes
    mini.generate(PROMPTS, engine="eager")
    assert mini._engine.kept_bytes == 0


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its code generation, which takes half a minute on a CPU."""
    torch.compiler.reset()
    compiled._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    yield
    compiled._compiled.cache_clear()
    torch.compiler.reset()


@pytest.mark.parametrize("sampler", ["gumbel", "multinomial"])
def test_compiled_blocks_draw_the_same_and_are_compiled_once_for_all(mini, traced, sampler):
    # After this transformers 5 has hooks in the blocks, for good.
    mini.parts.backbone(inputs_embeds=torch.zeros(1, 1, 192), output_hidden_states=True, output_attentions=True)
    hooks = {module: list(module._forward_hooks) for module in mini.parts.blocks.modules()}
    expected = mini.generate(PROMPTS, seed=4, sampler=sampler).tokens
    found = mini.generate(PROMPTS, seed=4, sampler=sampler, engine="compile", strict=True).tokens
    assert {module: list(module._forward_hooks) for module in mini.parts.blocks.modules()} == hooks
    assert torch.equal(found, expected)
    # one for the first length that attention looks at, one for all further ones; not one for each block
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert all("forward" not in vars(block) for block in mini.parts.blocks)
    assert torch.equal(mini.generate(PROMPTS, seed=4, sampler=sampler).tokens, expected)


def test_a_model_that_cannot_be_compiled_runs_eagerly(mini, monkeypatch):
    monkeypatch.setattr(mini, "_engine", engine.Engine(mini.parts))

    def fail(self, visible_lengths):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Decoder, "try_steps", fail)
    expected = mini.generate(PROMPTS, seed=4).tokens
    with pytest.warns(UserWarning, match="engine 'compile' failed, and the step runs eagerly instead: no compiler"):
        assert torch.equal(mini.generate(PROMPTS, seed=4, engine="compile").tokens, expected)


@pytest.mark.parametrize("name", ["graph", "fast"])
def test_an_engine_that_is_not_there_is_refused(mini, name):
    message = "needs a CUDA device, got cpu" if name == "graph" else "must be one of"
    with pytest.raises(ValueError, match=f"engine.*{message}"):
        mini.generate(PROMPTS, engine=name)
