"""The engines "graph" and "compile" as far as they go without a GPU: graphs are replaced by the step itself."""

import functools
import threading
import time
import types
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

from janus_dola import DoLaConfig
from janus_dola.engine import decoder as decode
from janus_dola.engine import decoder_cache, devices, engine, plan
from janus_dola.kernels import block as blocks
from janus_dola.kernels.block_torch import PassStart, Rotary
from tests.kernels.blocks import random_block

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
    """A model whose device is said to have graphs. Switches of the whole process cannot be touched."""
    for module in (plan, engine, decode, decoder_cache):
        monkeypatch.setattr(module, "has_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", None)
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
    calls = [{"dola": None}, {}, {"window": 8}]
    drawn = [mini.generate(PROMPTS[0], seed=4, **call).tokens for call in calls]
    again = [mini.generate(PROMPTS[0], seed=4, **call).tokens for call in calls]
    assert all(map(torch.equal, again, drawn))
    assert len(steps) == 4


def test_decoders_that_are_kept_have_one_buffer_as_large_as_the_largest(mini, steps):
    for dola, prompts in ((None, PROMPTS[:2]), (None, PROMPTS[:1]), (DoLaConfig(), PROMPTS[:2]), (None, PROMPTS[:2])):
        mini.generate(prompts, dola=dola)
    assert [len(decoder.slots.seeds) for decoder in steps.decoders] == [2, 1, 2]
    assert {decoder.keys_values.data_ptr() for decoder in steps.decoders} == {steps.decoders[0].keys_values.data_ptr()}
    assert mini.engine.kept_bytes == steps.decoders[0].keys_values.nbytes
    mini.generate(PROMPTS)  # needs more: the others go with their buffer
    assert mini.engine.kept_bytes == steps.decoders[3].keys_values.nbytes == 2 * steps.decoders[0].keys_values.nbytes
    mini.generate(PROMPTS[:2])
    assert len(steps) == 5


def test_of_many_kinds_of_calls_the_decoders_used_last_are_kept(mini, steps, monkeypatch):
    monkeypatch.setattr(decoder_cache, "_KEPT", 2)
    for window in (4, 8, 4, 16, 4):
        mini.generate(PROMPTS[0], window=window)
    assert [decoder.plan.window for decoder in steps.decoders] == [4, 8, 16]


def test_free_memory_is_asked_for_once_a_call(mini, steps, monkeypatch):
    calls = []
    monkeypatch.setattr(engine, "images_that_fit", lambda *_: calls.append(1) or 16)
    mini.generate(PROMPTS[0], 4)
    assert len(calls) == 1


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
    mini.generate(PROMPTS, dola=None)
    assert len(steps) == 3


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
    replays = steps.replays
    monkeypatch.setattr(decode, "capture", steps.capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mini.generate(PROMPTS, seed=4)
        assert steps.replays == replays
        assert torch.equal(mini.generate(PROMPTS, seed=4, window=8).tokens, expected)  # of which nothing is known
        assert steps.replays > replays
        replays = steps.replays
        mini.engine.release()
        assert torch.equal(mini.generate(PROMPTS, seed=4).tokens, expected)
    assert steps.replays > replays


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
    """A length that was not tried out: what was captured before is replayed on. The next call tries again."""
    prompt = LOOKS_AT_THREE
    expected = mini.generate(prompt, seed=4, launch="eager", window=1).tokens
    captures = fail_after_two(steps, monkeypatch)
    with pytest.warns(
        UserWarning, match="could not be captured, and runs without a graph instead: operation"
    ) as warned:
        assert torch.equal(mini.generate(prompt, seed=4, window=1).tokens, expected)
    assert len(warned) == 1
    assert steps.replays > 0
    assert len(captures) == 3
    assert sorted(steps.decoders[0].graphs) == [64, 192]
    monkeypatch.setattr(decode, "capture", steps.capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(mini.generate(prompt, seed=4, window=1).tokens, expected)
    assert len(steps) == 1
    assert sorted(steps.decoders[0].graphs) == [64, 128, 192]


def test_threads_load_and_capture_one_after_the_other(mini, steps, monkeypatch):
    for dola in (None, DoLaConfig()):
        mini.generate(PROMPTS[0], dola=dola)
    busy, beside = set(), []

    def watched(call):
        def alone(*arguments):
            assert devices.capturing.locked()
            me = threading.get_ident()
            busy.add(me)
            time.sleep(0.02)
            call(*arguments)
            beside.extend(busy - {me})
            busy.remove(me)

        return alone

    monkeypatch.setattr(decode.Decoder, "step", watched(decode.Decoder.step))
    monkeypatch.setattr(decode, "capture", watched(steps.capture))
    one, other = steps.decoders
    other.graphs.clear()
    runs = [one.try_out, lambda: [other.run(visible) for visible in (64, 128)]]
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(one.graphs) == len(other.graphs) == 2
    assert beside == []
    assert not devices.capturing.locked()


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


def test_each_kind_of_model_and_window_is_compiled_apart(traced):
    """Torch compiles one function so often and no more, and then raises."""
    generator = torch.Generator().manual_seed(0)
    rotary = Rotary(torch.ones(128, 36), torch.ones(128, 36))
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for dtype, window in ((torch.float32, 2), (torch.float32, 3), (torch.float64, 2)):
            weights = random_block(2, 2, 36, False, dtype, generator)
            x, buffer = torch.randn(2 * window, 72).to(dtype), torch.zeros(1, 2, 128, 2, 2, 36, dtype=dtype)
            start = PassStart(torch.zeros(2, dtype=torch.int64), Rotary(rotary.cos.to(dtype), rotary.sin.to(dtype)), 64)
            runs = [blocks.resolve_blocks("torch", [weights], window, compiled) for compiled in (False, True)]
            expected, actual = (run(x, [weights], buffer, start, []) for run in runs)
            assert torch.allclose(actual, expected)
    assert counters["stats"]["unique_graphs"] == 3


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
        if self.plan.launch != "eager":
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
