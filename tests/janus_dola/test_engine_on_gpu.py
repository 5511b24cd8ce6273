"""The decode engine on a GPU. `make gpu-check` runs these; without a GPU they are skipped."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bench.speed.widened import widened
from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.arguments import WINDOWS
from janus_dola.engine.capacity import positions
from janus_dola.engine.decoder import Decoder
from janus_dola.engine.engine import Engine
from janus_dola.engine.plan import make_plan
from janus_dola.engine.profiling import half_way
from janus_dola.engine.slot_runner import SlotRunner
from janus_dola.settings import DrawSettings
from tests.janus_dola import emu3
from tests.janus_dola.ties import assert_same_but_for_ties

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("error:(launch|a pass could not be captured):UserWarning"),
]
PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]  # of different lengths
WIDE_DOLA = DoLaConfig(candidate_layers=[1, 2, 3])
MIB = 2**20


@pytest.fixture(scope="module")
def pipe():
    return JanusDoLa.from_pretrained("mini", device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def wide():
    """The first blocks of the mini model in the shape of the 7B model."""
    return widened("7B", blocks=4, device="cuda", dtype=torch.bfloat16)


def errors_on_waiting(run):
    """Runs it; what waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        return run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watch_passes(monkeypatch):
    """From now on what waits for the GPU in a pass raises. Returns the list of passes, which grows."""
    advance, seen = SlotRunner.advance, []

    def watched(runner):
        seen.append(runner)
        return errors_on_waiting(lambda: advance(runner))

    monkeypatch.setattr(SlotRunner, "advance", watched)
    return seen


@pytest.mark.parametrize(("sampler", "window"), [("multinomial", 1), *(("gumbel", window) for window in WINDOWS)])
@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
def test_all_engines_and_windows_draw_the_same_tokens(pipe, dola, sampler, window):
    expected = pipe.generate(PROMPTS, 2, dola=dola, seed=4, sampler=sampler, launch="eager", window=1)
    for launch in ("eager", "graph", "compile"):
        drawn = pipe.generate(PROMPTS, 2, dola=dola, seed=4, sampler=sampler, launch=launch, window=window)
        if sampler == "gumbel":
            assert_same_but_for_ties(pipe, PROMPTS, drawn.tokens, expected, dola=dola)
        elif launch != "compile":  # whose products are the library's
            assert torch.equal(drawn.tokens, expected.tokens), launch
        assert (drawn.tokens == expected.tokens).all(-1).float().mean() > 0.5, launch
        same = drawn.tokens == expected.tokens
        assert (drawn.premature_layers == expected.premature_layers)[same].float().mean() > 0.9, launch
        assert (drawn.passes < pipe.image_model.image_tokens - 1).all() == (window > 1), launch


@pytest.mark.parametrize("window", [1, 8])
def test_graphs_draw_anew_for_other_seeds_and_prompts(pipe, window):
    for seed, prompts in ((1, PROMPTS), (2, PROMPTS[::-1]), (3, PROMPTS[:1]), (1, PROMPTS)):
        expected = pipe.generate(prompts, seed=seed, launch="eager", window=window)
        drawn = pipe.generate(prompts, seed=seed, launch="graph", window=window)
        assert_same_but_for_ties(pipe, prompts, drawn.tokens, expected)


@pytest.mark.parametrize("launch", ["eager", "graph"])
@pytest.mark.parametrize("window", [1, 8])
def test_images_that_join_others_are_those_drawn_alone(wide, launch, window):
    """bfloat16, bit for bit: two slots, and an image begins in each whenever another is done."""
    settings = {"dola": WIDE_DOLA, "seed": 9, "launch": launch, "window": window, "max_images": 2}
    together = list(wide.stream(PROMPTS, 3, **settings))
    for place, actual in enumerate(together):
        settings["seed"] = 9 + place
        neighbours = wide.stream([PROMPTS[actual.prompt], PROMPTS[0]], **settings)
        alone = next(neighbours)
        neighbours.close()
        assert torch.equal(alone.tokens, actual.tokens), place
        assert torch.equal(alone.jsd, actual.jsd), place


def test_tokens_are_those_of_the_cpu(pipe):
    cpu = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    same = pipe.generate(PROMPTS, 4).tokens.cpu() == cpu.generate(PROMPTS, 4).tokens
    assert same.all(-1).float().mean() > 0.7  # an image may turn where two codes are all but equal


@pytest.mark.parametrize("launch", ["eager", "graph"])
@pytest.mark.parametrize(("sampler", "window"), [("multinomial", 1), ("gumbel", 1), ("gumbel", 8)])
def test_the_host_waits_for_nothing_in_a_pass(pipe, monkeypatch, sampler, window, launch):
    settings = {"sampler": sampler, "window": window, "launch": launch}
    pipe.generate(PROMPTS, **settings)  # compiles
    passes = watch_passes(monkeypatch)
    drawn = pipe.generate(PROMPTS, **settings)
    assert len(passes) >= drawn.passes.max()


def test_the_host_waits_for_nothing_while_images_begin(pipe, monkeypatch):
    pipe.generate(PROMPTS, launch="graph")
    admit, calls = Decoder.admit, []

    def watched(decoder, *arguments):
        calls.append(errors_on_waiting(lambda: admit(decoder, *arguments)))

    monkeypatch.setattr(Decoder, "admit", watched)
    pipe.generate(PROMPTS, launch="graph")
    assert len(calls) == len(PROMPTS)


@pytest.mark.parametrize("window", [1, 8])
def test_a_pass_is_one_launch(pipe, monkeypatch, window):
    pipe.generate(PROMPTS, launch="graph", window=window)
    passes = watch_passes(monkeypatch)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        pipe.generate(PROMPTS, launch="graph", window=window)
    launches = [event for event in recorded.events() if event.name == "cudaGraphLaunch"]
    assert len(launches) == len(passes)
    assert (len(passes) == pipe.image_model.image_tokens - 1) == (window == 1)


@pytest.mark.parametrize("window", [1, 8])
def test_attention_never_takes_the_slow_path(wide, window):
    """No kernel of a softmax written out, though every row has a mask of its own."""
    settings, (rows,) = DrawSettings(contrast=None), wide.encode(PROMPTS[0])
    plan = make_plan(wide.image_model, settings, launch="eager")
    with half_way(wide.engine, rows, 2, plan, settings.sampling_params(()), window) as runner:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            runner.advance()
            torch.cuda.synchronize()
    seen = [event.name for event in recorded.events()]
    attention = [name for name in seen if any(word in name.lower() for word in ("fmha", "flash", "attention", "sdpa"))]
    assert len(attention) >= wide.image_model.num_layers, seen


def peak(pipe, dola, launch, window):
    """Bytes at the most, of a generation whose graphs and kernels are ready, the model included."""
    pipe.generate(PROMPTS[:1], 16, dola=dola, launch=launch, window=window)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    pipe.generate(PROMPTS[:1], 16, dola=dola, launch=launch, window=window)
    return torch.cuda.max_memory_allocated()


def bytes_of_layers(layers, rows, hidden=4096, codes=16384):
    """What so many layers more take in the head stage of the 7B shape, in 16 bits."""
    from janus_dola.kernels.gpu import launch

    generation = launch.generation_here(torch.device("cuda"))
    splits = launch.matmul_launch("project", generation, 16, (layers + 1) * rows, hidden).splits
    states = 2 * layers * rows * hidden * 2  # each layer's, and all of them stacked
    sums = splits * layers * rows * hidden * 4  # of the projection
    folded, logits = layers * rows // 2 * hidden * 2, layers * rows // 2 * codes * 4
    return states + sums + folded + logits


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("launch", ["eager", "graph"])
def test_dola_adds_hidden_states_and_logits_and_no_more(wide, launch, window):
    baseline = peak(wide, None, launch, window)
    wide.engine.release()
    with_dola = peak(wide, WIDE_DOLA, launch, window)
    wide.engine.release()
    assert with_dola - baseline <= bytes_of_layers(3, 32 * window) + 2 * MIB


@pytest.mark.parametrize("window", [1, 8])
def test_images_need_their_keys_and_values_and_little_else(wide, window):
    """16 images of 4 blocks of the 7B shape; what a pass needs is freed by the next block."""
    wide.generate(PROMPTS[:1], launch="eager")  # makes the table of codes, which stays
    wide.engine.release()
    before = torch.cuda.memory_allocated()
    rows, prompt = 32, len(wide.encode(PROMPTS[0])[0].conditional)
    keys_values = 4 * rows * positions(wide.image_model, prompt, window) * 2 * 4096 * 2
    of_a_pass = rows * window * (2 * 11008 + 8 * 4096) * 2 + rows // 2 * window * 16384 * 4 * 2
    of_pictures = 64 * MIB
    assert peak(wide, None, "eager", window) - before <= keys_values + of_a_pass + of_pictures


@pytest.mark.parametrize("window", [1, 8])
def test_fifty_generations_leave_nothing_behind(pipe, window):
    sizes = []
    for seed in range(50):
        pipe.generate(PROMPTS, seed=seed, launch="graph", window=window)
        sizes.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert sizes[-1] == sizes[5]


def let_passes_read_back(pipe, monkeypatch):
    """No graph can hold such a pass. The engine is one that has captured none yet, and says why it falls back."""
    step = Decoder.step

    def reads(decoder, visible):
        step(decoder, visible)
        decoder.slots.decided.sum().item()

    monkeypatch.setattr(pipe, "engine", Engine(pipe.image_model))
    monkeypatch.setattr(Decoder, "step", reads)


@pytest.mark.parametrize("window", [1, 8])
def test_a_pass_that_cannot_be_captured_falls_back(pipe, monkeypatch, window):
    expected = pipe.generate(PROMPTS, seed=4, launch="eager")
    let_passes_read_back(pipe, monkeypatch)
    with pytest.warns(UserWarning, match="launch 'graph' failed, and passes run eagerly on tensors instead"):
        drawn = pipe.generate(PROMPTS, seed=4, launch="graph", window=window)
    assert_same_but_for_ties(pipe, PROMPTS, drawn.tokens, expected)


def test_a_pass_that_cannot_be_captured_is_an_error_if_asked_for(pipe, monkeypatch):
    let_passes_read_back(pipe, monkeypatch)
    with pytest.raises(UserWarning, match="launch 'graph' failed, and passes run eagerly on tensors instead"):
        pipe.generate(PROMPTS, seed=4, launch="graph")


def test_a_capture_that_fails_once_is_made_again(pipe, monkeypatch):
    """As when a thread of the user's waits for the whole GPU; and the process is as before."""
    expected, failures, step = pipe.generate(PROMPTS, seed=4, launch="eager"), [], Decoder.step

    def spoiled_once(decoder, visible):
        step(decoder, visible)
        if torch.cuda.is_current_stream_capturing() and not failures:
            failures.append(1)
            decoder.slots.decided.sum().item()

    monkeypatch.setattr(pipe, "engine", Engine(pipe.image_model))
    monkeypatch.setattr(Decoder, "step", spoiled_once)
    for _ in range(2):
        drawn = pipe.generate(PROMPTS, seed=4, launch="graph")
        assert_same_but_for_ties(pipe, PROMPTS, drawn.tokens, expected)
    assert failures == [1]
    assert not torch.cuda.is_current_stream_capturing()


def in_threads(*runs):
    """Runs all at once; returns what they return, and raises what one raises."""
    with ThreadPoolExecutor(len(runs)) as pool:
        return [future.result() for future in [pool.submit(run) for run in runs]]


def test_threads_that_capture_at_once_draw_what_each_draws_alone(pipe):
    """A warning would be an error: nobody falls back."""
    calls = [{"dola": None, "window": 1}, {"window": 1}, {"window": 8, "temperature": 0.5}]
    expected = [pipe.generate(PROMPTS, 2, seed=4, launch="eager", **call) for call in calls]
    draw = [  # each has graphs to capture
        partial(JanusDoLa(pipe.model, pipe.tokenizer).generate, PROMPTS, 2, seed=4, launch="graph", **call)
        for call in calls
    ]
    drawn = in_threads(*draw)
    for images, alone, call in zip(drawn, expected, calls, strict=True):
        dola = call.get("dola", DoLaConfig())
        assert_same_but_for_ties(
            pipe, PROMPTS, images.tokens, alone, dola=dola, temperature=call.get("temperature", 1.0)
        )


@pytest.mark.parametrize("settings", [{"cfg_weight": 1.0}, {"top_k": 40}, {"top_p": 0.9}], ids=str)
def test_a_captured_pass_draws_with_each_setting_what_the_reference_draws(pipe, settings):
    drawn = pipe.generate(PROMPTS, 2, seed=4, launch="graph", window=8, **settings)
    expected = pipe.generate(PROMPTS, 2, seed=4, launch="eager", backend="reference", window=1, **settings)
    assert (drawn.tokens == expected.tokens).all(-1).float().mean() > 0.7
    if "top_k" in settings:
        assert pipe.scores(PROMPTS, drawn.tokens, **settings).scores.isfinite().sum(-1).max() <= settings["top_k"]


@pytest.mark.parametrize("window", [1, 8])
def test_grouped_heads_in_a_graph_are_those_on_tensors(window):
    """Emu3's, of random weights: queries that share a head of keys."""
    tokenizer = emu3.tokenizer()
    pipe = JanusDoLa(emu3.model(tokenizer).cuda(), tokenizer)
    drawn = [
        pipe.generate(PROMPTS, seed=4, window=window, dola=WIDE_DOLA, **how).tokens
        for how in ({"launch": "graph", "backend": "triton"}, {"launch": "eager", "backend": "reference"})
    ]
    assert (drawn[0] == drawn[1]).all(-1).float().mean() > 0.6


def test_a_real_head_in_a_graph_is_the_one_on_tensors(wide):
    """The head of the 7B shape in bfloat16, over hidden states that are the same: the first code of each image."""
    drawn = [
        wide.generate(PROMPTS, 2, seed=4, dola=WIDE_DOLA, launch=launch, backend=backend, window=8)
        for launch, backend in (("graph", "triton"), ("eager", "torch"))
    ]
    assert torch.equal(drawn[0].tokens[..., 0], drawn[1].tokens[..., 0])
    assert torch.allclose(drawn[0].jsd[..., 0], drawn[1].jsd[..., 0], atol=1e-3)


if torch.cuda.device_count() > 1:

    def test_the_second_gpu_draws_what_the_first_does(pipe):
        """Beside it, in another thread: kernels, streams and graphs are those of the model's own GPU."""
        second = JanusDoLa.from_pretrained("mini", device="cuda:1", dtype="float32")
        draw = [partial(each.generate, PROMPTS, 2, seed=4, launch="graph") for each in (pipe, second)]
        first, other = in_threads(*draw)
        assert_same_but_for_ties(pipe, PROMPTS, other.tokens.to(first.tokens.device), first)


def test_pictures_decoded_beside_the_next_batch_are_those_of_the_codes(pipe):
    expected = pipe.generate(PROMPTS, 4, seed=2)
    drawn = list(pipe.stream(PROMPTS, 4, seed=2, max_images=4))
    tokens = torch.stack([each.tokens for each in drawn]).view_as(expected.tokens)
    assert_same_but_for_ties(pipe, PROMPTS, tokens, expected)
    for each in drawn:  # each is decoded alone, so that its bytes follow from its codes
        if torch.equal(each.tokens, expected.tokens[each.prompt, each.k]):
            assert each.image.tobytes() == expected.images[each.prompt][each.k].tobytes()
