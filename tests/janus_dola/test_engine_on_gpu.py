"""The decode engine on a GPU. `make gpu-check` runs these; without a GPU they are skipped."""

import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.decode import Decoder
from janus_dola.engine.engine import Engine

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))
import shapes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
PROMPTS = ["a large red circle on white", "a small blue square on grey", "a green cross"]  # of different lengths
MIB = 2**20


@pytest.fixture(scope="module")
def pipe():
    return JanusDoLa.from_pretrained("mini", device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def wide():
    """The shape of the 7B model, cut to 4 blocks and 36 codes."""
    return shapes.random_janus("7B", blocks=4, codes_a_side=6, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("sampler", ["gumbel", "multinomial"])
@pytest.mark.parametrize("dola", [None, DoLaConfig()], ids=["baseline", "dola"])
def test_all_engines_draw_the_same_tokens(pipe, dola, sampler):
    drawn = {
        engine: pipe.generate(PROMPTS, 2, dola, seed=4, sampler=sampler, engine=engine, strict=True).tokens
        for engine in ("eager", "graph", "compile")
    }
    assert torch.equal(drawn["graph"], drawn["eager"])
    assert torch.equal(drawn["compile"], drawn["eager"])


def test_graphs_draw_anew_for_other_seeds_and_prompts(pipe):
    for seed, prompts in ((1, PROMPTS), (2, PROMPTS[::-1]), (3, PROMPTS[:1]), (1, PROMPTS)):
        expected = pipe.generate(prompts, seed=seed, engine="eager").tokens
        assert torch.equal(pipe.generate(prompts, seed=seed, engine="graph", strict=True).tokens, expected)


def test_tokens_are_those_of_the_cpu(pipe):
    cpu = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    same = pipe.generate(PROMPTS, 4).tokens.cpu() == cpu.generate(PROMPTS, 4).tokens
    assert same.all(-1).float().mean() > 0.7  # an image may turn where two codes are all but equal


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_nothing_waits_for_the_gpu_while_an_image_is_drawn(pipe, monkeypatch, engine):
    begin, codes = Decoder.begin, Decoder.codes

    def begun(decoder, *arguments):
        begin(decoder, *arguments)
        torch.cuda.set_sync_debug_mode("error")

    def done(decoder, images):
        found = codes(decoder, images)
        torch.cuda.set_sync_debug_mode("default")
        return found

    pipe.generate(PROMPTS, engine=engine, strict=True)  # compiles
    monkeypatch.setattr(Decoder, "begin", begun)
    monkeypatch.setattr(Decoder, "codes", done)
    try:
        pipe.generate(PROMPTS, engine=engine, strict=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_token_is_one_launch(pipe):
    pipe.generate(PROMPTS, engine="graph", strict=True)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        pipe.generate(PROMPTS, engine="graph", strict=True)
    launches = [event for event in recorded.events() if event.name == "cudaGraphLaunch"]
    assert len(launches) == pipe.parts.image_tokens - 1


def test_attention_never_takes_the_slow_path(wide, monkeypatch):
    """Left-padded rows included: no kernel of a softmax written out."""
    recorded = profile(activities=[ProfilerActivity.CUDA])
    step, seen = Decoder.step, []

    def watched(decoder, visible):
        if not seen:
            torch.cuda.synchronize()
            with recorded:
                step(decoder, visible)
                torch.cuda.synchronize()
            seen.extend(event.name for event in recorded.events())
        else:
            step(decoder, visible)

    wide.generate(PROMPTS, dola=None, engine="eager")
    monkeypatch.setattr(Decoder, "step", watched)
    wide.generate(PROMPTS, dola=None, engine="eager")
    attention = [name for name in seen if any(word in name.lower() for word in ("fmha", "flash", "attention", "sdpa"))]
    assert len(attention) >= wide.parts.num_layers, seen


def peak(pipe, dola, engine):
    """Bytes at the most, of a generation whose graphs and kernels are ready, beyond what the model takes."""
    pipe.generate(PROMPTS[:1], 16, dola, engine=engine, strict=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    pipe.generate(PROMPTS[:1], 16, dola, engine=engine, strict=True)
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_dola_adds_hidden_states_and_logits_and_no_more(wide, engine):
    baseline = peak(wide, None, engine)
    wide._engine.release()
    with_dola = peak(wide, DoLaConfig(candidate_layers=[1, 2, 3]), engine)
    layers, rows, hidden, codes = 3, 32, 4096, 16384
    states = layers * rows * hidden * 2  # tapped
    folded, logits = layers * rows // 2 * hidden * 2, layers * rows // 2 * codes * 4
    assert with_dola - baseline <= states + folded + logits + 2 * MIB


def test_fifty_generations_leave_nothing_behind(pipe):
    sizes = []
    for seed in range(50):
        pipe.generate(PROMPTS, seed=seed, engine="graph", strict=True)
        sizes.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert sizes[-1] == sizes[5]


def test_a_step_that_cannot_be_captured_falls_back(pipe, monkeypatch):
    expected = pipe.generate(PROMPTS, seed=4, engine="eager").tokens
    step = Decoder.step

    def reads(decoder, visible):
        step(decoder, visible)
        decoder._code.sum().item()  # which no graph can hold

    monkeypatch.setattr(pipe, "_engine", Engine(pipe.parts))
    monkeypatch.setattr(Decoder, "step", reads)
    with pytest.warns(UserWarning, match="engine 'graph' failed, and the step runs eagerly instead"):
        assert torch.equal(pipe.generate(PROMPTS, seed=4, engine="graph").tokens, expected)


def test_pictures_decoded_beside_the_next_batch_are_those_of_the_codes(pipe):
    expected = pipe.generate(PROMPTS, 4, seed=2)
    drawn = list(pipe.stream(PROMPTS, 4, seed=2, max_images=4, strict=True))
    assert torch.equal(torch.stack([found.tokens for found in drawn]), expected.tokens.flatten(0, 1))
    for found, picture in zip(drawn, [picture for row in expected.images for picture in row], strict=True):
        assert found.image.tobytes() == picture.tobytes()
