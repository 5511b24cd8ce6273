"""The engines "graph" and "compile" as far as they go without a GPU: graphs are replaced by the step itself."""

import functools
import types
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from janus_dola import DoLaConfig
from janus_dola.engine import decoder as decode
from janus_dola.engine import engine, plan
from janus_dola.kernels import block as blocks

PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]
LONG = "a large red circle on white" + " and a green cross" * 30


class Captured:
    """Decoders that were tried out, and what they captured: a graph runs the pass."""

    def __init__(self, monkeypatch):
        self.decoders, self.replays, try_out = [], 0, decode.Decoder.try_out

        def noted(decoder):
            if decoder.plan.launch != "eager":
                self.decoders.append(decoder)
            try_out(decoder)

        monkeypatch.setattr(decode.Decoder, "try_out", noted)
        monkeypatch.setattr(decode, "capture", self.capture)

    def capture(self, run, device, pool, generator):
        def replay():
            self.replays += 1
            run()

        return types.SimpleNamespace(replay=replay)

    def __len__(self):
        return len(self.decoders)


@pytest.fixture
def steps(mini, monkeypatch):
    """A model whose device is said to have graphs."""
    for module in (plan, engine, decode):
        monkeypatch.setattr(module, "has_graphs", lambda device: True)
    for name in ("get_sync_debug_mode", "set_sync_debug_mode", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(mini, "engine", engine.Engine(mini.image_model))
    return Captured(monkeypatch)


@pytest.mark.parametrize("sampler", ["gumbel", "multinomial"])
@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
def test_batches_filled_up_to_a_bucket_draw_the_same(mini, steps, dola, sampler):
    for prompts in (PROMPTS, PROMPTS[:1]):
        expected = mini.generate(prompts, dola=dola, sampler=sampler, seed=4, launch="eager")
        out = mini.generate(prompts, dola=dola, sampler=sampler, seed=4)
        assert torch.equal(out.tokens, expected.tokens)
        assert torch.allclose(out.jsd, expected.jsd, atol=1e-5)
    buckets = [4, 1] if sampler == "gumbel" else [3, 1]
    assert [len(decoder.slots.seeds) for decoder in steps.decoders] == buckets


def test_graphs_are_kept_for_calls_of_the_same_kind(mini, steps):
    images = list(mini.stream(PROMPTS * 3, max_images=3))
    assert len(images) == 9
    assert len(steps) == 1
    mini.generate(PROMPTS)
    assert len(steps) == 1
    mini.generate(PROMPTS, dola=None)
    assert len(steps) == 2


def test_other_settings_of_an_image_need_no_other_graph(mini, steps):
    """Guidance, temperature, plausibility: read from the device in each pass."""
    looks = [{}, {"temperature": 0.0}, {"cfg_weight": 2.0}, {"dola": DoLaConfig(alpha=0.5)}]
    expected = [mini.generate(PROMPTS, seed=4, launch="eager", **look).tokens for look in looks]
    for look, tokens in zip(looks, expected, strict=True):
        assert torch.equal(mini.generate(PROMPTS, seed=4, **look).tokens, tokens)
    assert len(steps) == 1


def test_graphs_are_not_shared_by_calls_at_the_same_time(mini, steps):
    expected = mini.generate(PROMPTS, seed=4, launch="eager").tokens[:, 0]
    for image in mini.stream(PROMPTS, seed=4, max_images=2):
        assert torch.equal(mini.generate(PROMPTS[:2], seed=4).tokens[:, 0], expected[:2])
        assert torch.equal(image.tokens, expected[image.prompt])
    assert len(steps) == 2


def test_graphs_of_weights_that_moved_are_made_anew(mini, steps):
    expected = mini.generate(PROMPTS, seed=4).tokens
    linear = mini.image_model.blocks[0].mlp.down_proj
    linear.weight.data = linear.weight.data.clone()
    assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)
    assert len(steps) == 2


def test_a_longer_prompt_gets_graphs_of_its_own(mini, steps):
    expected = mini.generate(LONG, launch="eager").tokens
    mini.generate("a green cross")
    assert torch.equal(mini.generate(LONG).tokens, expected)
    short, long = steps.decoders
    assert sorted(short.graphs) == [64, 128] == [64, short.capacity]
    assert sorted(long.graphs) == [64, 192, 256] == [64, 192, long.capacity]  # the prompt has more than 128 tokens


def test_a_length_is_captured_when_it_is_first_looked_at_and_replayed_from_then_on(mini, steps):
    drawn = mini.generate("a green cross" + " and a green cross" * 20, window=1)
    lengths = sorted(steps.decoders[0].graphs)
    assert lengths == [64, 128, 192]
    eager = len(set(lengths) - {64, 192})  # the first pass of each length that was not tried out
    assert steps.replays == drawn.passes.item() - eager == 63 - 1


def test_a_call_leaves_nothing_to_the_next(mini, steps):
    expected = mini.generate(PROMPTS, seed=4, launch="eager").tokens
    mini.generate(PROMPTS[::-1], seed=1)
    decoder = steps.decoders[0]
    for name in ("seeds", "layers", "jsd", "passes", "tokens"):
        tensor = getattr(decoder.slots, name)
        tensor.fill_(7 if tensor.dtype == torch.int64 else float("nan"))
    decoder.keys_values[:, :3].fill_(float("nan"))
    decoder.keys_values[:, 4:7].fill_(float("nan"))
    assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)
    assert len(steps) == 1


def test_a_stream_that_is_left_gives_its_decoder_back(mini, steps):
    stream = mini.stream(PROMPTS * 10, max_images=3)
    next(stream)
    assert mini.engine.kept_bytes == 0
    stream.close()
    assert mini.engine.kept_bytes > 0
    expected = mini.generate(PROMPTS, seed=4, launch="eager").tokens
    assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)


def test_a_failed_capture_is_told_once_and_the_images_come_all_the_same(mini, steps, monkeypatch):
    expected = mini.generate(PROMPTS, seed=4, launch="eager").tokens

    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decode, "capture", fail)
    with pytest.warns(UserWarning, match="launch 'graph' failed, and passes run eagerly on tensors instead: operation"):
        assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mini.generate(PROMPTS, seed=4)


@pytest.mark.filterwarnings("error")
def test_with_warnings_as_errors_each_failed_capture_is_one(mini, steps, monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decode, "capture", fail)
    for _ in range(2):
        with pytest.raises(UserWarning, match="launch 'graph' failed, .*: operation not permitted"):
            mini.generate(PROMPTS, seed=4)


LOOKS_AT_THREE = "a green cross" + " and a green cross" * 20  # at 64, 128 and 192 positions; 128 is not tried out


def fail_after_two(steps, monkeypatch):
    """The captures, of which all but the first two fail."""
    captures = []

    def capture(*arguments):
        captures.append(arguments)
        if len(captures) > 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return steps.capture(*arguments)

    monkeypatch.setattr(decode, "capture", capture)
    return captures


@pytest.mark.filterwarnings("error")
def test_with_warnings_as_errors_each_capture_that_fails_in_the_middle_of_an_image_is_one(mini, steps, monkeypatch):
    captures = fail_after_two(steps, monkeypatch)
    for count in (3, 4):
        with pytest.raises(UserWarning, match="could not be captured, and runs without a graph instead: operation"):
            mini.generate(LOOKS_AT_THREE, seed=4, window=1)
        assert len(captures) == count
    assert len(steps) == 1


def test_a_capture_that_fails_in_the_middle_of_an_image_is_told_once_and_the_pass_runs(mini, steps, monkeypatch):
    """A length that was not tried out: what was captured before is replayed on, and no other length is captured."""
    prompt = LOOKS_AT_THREE
    expected = mini.generate(prompt, seed=4, launch="eager", window=1).tokens
    captures = fail_after_two(steps, monkeypatch)
    with pytest.warns(
        UserWarning, match="could not be captured, and runs without a graph instead: operation"
    ) as warned:
        assert torch.equal(mini.generate(prompt, seed=4, window=1).tokens, expected)
    replayed = steps.replays
    assert len(warned) == 1
    assert replayed > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(mini.generate(prompt, seed=4, window=1).tokens, expected)
    assert steps.replays == 2 * replayed
    assert len(captures) == 3
    assert len(steps) == 1
    assert sorted(steps.decoders[0].graphs) == [64, 192]


def test_a_pass_that_waits_never_gets_to_a_capture(mini, steps, monkeypatch):
    """The second pass that is tried out may not wait; a capture of it would leave the process in disorder."""
    expected, modes, captured = mini.generate(PROMPTS, seed=4, launch="eager").tokens, ["default"], []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(decode, "capture", lambda *_: captured.append(1))
    step = decode.Decoder.step

    def reads(decoder, visible):
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        step(decoder, visible)

    monkeypatch.setattr(decode.Decoder, "step", reads)
    with pytest.warns(UserWarning, match="launch 'graph' failed, .*: called a synchronizing CUDA operation"):
        assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)
    assert modes == ["default", "error", "default"]
    assert captured == []


def test_no_memory_is_not_a_failed_capture(mini, steps, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(decode, "capture", fail)
    with pytest.raises(torch.OutOfMemoryError):
        mini.generate(PROMPTS)
    assert mini.engine.kept_bytes == 0


def test_what_is_kept_is_counted_and_can_be_given_back(mini, steps):
    mini.generate(PROMPTS)
    # rows, positions, blocks, numbers, keys and values, bytes
    assert mini.engine.kept_bytes == 2 * 4 * 128 * 8 * 192 * 2 * 4
    mini.engine.release()
    assert mini.engine.kept_bytes == 0


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its code generation, which takes half a minute on a CPU."""
    torch.compiler.reset()
    blocks._compiled_block.cache_clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    yield
    blocks._compiled_block.cache_clear()
    torch.compiler.reset()


@pytest.mark.filterwarnings("error:launch:UserWarning")
@pytest.mark.parametrize(("sampler", "window"), [("gumbel", 4), ("multinomial", 1)])
def test_a_compiled_block_draws_the_same_and_is_compiled_once_for_all(mini, traced, sampler, window):
    # After this transformers 5 has hooks in the blocks, for good.
    mini.image_model.backbone(inputs_embeds=torch.zeros(1, 1, 192), output_hidden_states=True, output_attentions=True)
    settings = {"seed": 4, "sampler": sampler, "window": window}
    expected = mini.generate(PROMPTS, **settings).tokens
    codes = mini.generate(PROMPTS, **settings, launch="compile").tokens
    assert torch.equal(codes, expected)
    # one for the first length that attention looks at, one for all further ones; not one for each block
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


class NoResources(blocks.TritonError):
    """As Triton's own, whose message it makes."""

    def __str__(self):
        return "no compiler"


@pytest.mark.parametrize("error", [RuntimeError("no compiler"), TypeError("no compiler"), NoResources()], ids=type)
def test_a_model_that_cannot_be_compiled_runs_eagerly(mini, monkeypatch, error):
    monkeypatch.setattr(mini, "engine", engine.Engine(mini.image_model))

    def fail(self):
        raise error

    expected = mini.generate(PROMPTS, seed=4).tokens
    monkeypatch.setattr(decode.Decoder, "try_out", fail)
    with pytest.warns(
        UserWarning, match="launch 'compile' failed, and passes run eagerly on tensors instead: no compiler"
    ):
        assert torch.equal(mini.generate(PROMPTS, seed=4, launch="compile").tokens, expected)


@pytest.mark.parametrize("name", ["graph", "fast"])
def test_an_engine_that_is_not_there_is_refused(mini, name):
    message = "needs a CUDA device, got cpu" if name == "graph" else "must be one of"
    with pytest.raises(ValueError, match=f"launch.*{message}"):
        mini.generate(PROMPTS, launch=name)
