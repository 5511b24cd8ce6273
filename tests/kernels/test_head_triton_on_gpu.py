"""The fused kernels on a GPU. `make gpu-check` runs these; without a GPU they are skipped."""

from functools import cache

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.kernels.head import head_scores, resolve_backend, sample_codes
from janus_dola.kernels.philox import gumbel_noise
from janus_dola.kernels.types import SamplingTensors
from tests.kernels.cases import (
    JSD_TOLERANCE,
    JSD_TOLERANCE_OF_SMALL_HEADS,
    assert_accurate,
    dola,
    oracle,
    random_head,
    random_hidden,
    random_matrix,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SIZES = {"1B": (2048, 2048, 16384), "7B": (4096, 4096, 16384), "odd": (2049, 1031, 16001), "small": (64, 96, 1000)}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
IMAGES, LAYERS = [1, 2, 3, 7, 12, 25, 64], [1, 2, 9, 16]  # of the small head
KERNELS = ["_normalise_kernel", "_project_kernel", "_codebook_kernel", "_sweep_kernel"]
CALLS = [
    dola(),
    dola(3.0, 0.7, 0.0),
    dola(5.0, 1.0, 0.0, 4),
    dola(5.0, 0.0, 0.1, 1),
    dola(None),
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that nobody has written holds NaN and the largest integers."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def fresh() -> int:
    """A seed that no run had before."""
    return torch.seed() % 2**31


@cache
def head_of(size, dtype, seed):
    return random_head(*SIZES[size], dtype, seed, device="cuda")


def case(size, dtype, images, seed, layers=5):
    print(f"inputs drawn from seed {seed}")  # shown when the test fails
    return random_hidden(layers, images, SIZES[size][0], dtype, seed + images).cuda(), head_of(size, dtype, seed)


def tolerance(size, dtype):
    return JSD_TOLERANCE if size != "small" or dtype == torch.float32 else JSD_TOLERANCE_OF_SMALL_HEADS


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_accuracy(size, dtype, backend, fresh):
    for images in (1, 4, 16):
        hidden, head = case(size, dtype, images, fresh)
        for params in CALLS:
            scores = head_scores(hidden, head, params, backend)
            assert_accurate(scores, hidden, head, params, tolerance(size, dtype))


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("layers", LAYERS)
def test_all_rows_and_layers(images, layers, fresh):
    hidden, head = case("small", torch.bfloat16, images, fresh, layers)
    params = dola(premature=0 if layers == 1 else None)
    scores = head_scores(hidden, head, params, "triton")
    assert_accurate(scores, hidden, head, params, JSD_TOLERANCE_OF_SMALL_HEADS)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight", [None, 5.0])
def test_text_heads(bias, weight, fresh):
    head = random_matrix(4096, 128256, torch.bfloat16, fresh, bias, device="cuda")
    hidden = random_hidden(9, 1, 4096, torch.bfloat16, fresh).cuda()
    params = dola(weight)
    scores = head_scores(hidden, head, params, "triton")
    assert_accurate(scores, hidden, head, params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_are_those_of_the_reference_wherever_the_choice_is_clear(dtype, fresh):
    hidden, head = case("1B", dtype, 16, fresh)
    seeds = torch.arange(16, device="cuda") + fresh
    compared = 0
    for params in CALLS[:4]:
        expected, _, _ = oracle(hidden, head, params)
        for position in range(20):
            codes = sample_codes(hidden, head, params, seeds, position, "triton")
            race = expected.scores
            if params.temperature > 0:
                race = race / params.temperature + gumbel_noise(seeds, position, race.shape[-1])
            best = race.topk(2).values
            clear = (codes.layer == expected.layer) & (best[:, 0] - best[:, 1] > 0.05)
            assert torch.equal(codes.code[clear], race.argmax(-1)[clear])
            compared += int(clear.sum())
    assert compared > 500


def test_the_same_bits_a_hundred_times(fresh):
    hidden, head = case("7B", torch.bfloat16, 16, fresh)
    seeds, position = torch.arange(16, device="cuda"), torch.full((16,), 3, device="cuda")
    first = sample_codes(hidden, head, dola(), seeds, position, "triton")
    scores = head_scores(hidden, head, dola(), "triton").scores
    for _ in range(100):
        again = sample_codes(hidden, head, dola(), seeds, position, "triton")
        for name in ("code", "layer", "jsd", "finite"):
            assert torch.equal(getattr(first, name), getattr(again, name)), name
        assert torch.equal(head_scores(hidden, head, dola(), "triton").scores, scores)


def test_a_graph_follows_seeds_positions_and_hidden_states(fresh):
    hidden, head = case("1B", torch.bfloat16, 4, fresh)
    seeds, position = torch.arange(4, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    sample_codes(hidden, head, dola(), seeds, position, "triton")  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample_codes(hidden, head, dola(), seeds, position, "triton")
    codes = set()
    for step in range(30):
        hidden.copy_(random_hidden(5, 4, 2048, torch.bfloat16, fresh + step))
        seeds.add_(17)
        position.fill_(step)
        graph.replay()
        direct = sample_codes(hidden, head, dola(), seeds, position, "triton")
        for name in ("code", "layer", "jsd", "finite"):
            assert torch.equal(getattr(captured, name), getattr(direct, name)), name
        codes.update(captured.code.tolist())
    assert len(codes) > 4


def test_compiles_without_a_graph_break(fresh):
    hidden, head = case("1B", torch.bfloat16, 4, fresh)
    seeds, position = torch.arange(4, device="cuda"), torch.full((4,), 3, device="cuda")

    def step(hidden_states, seeds, position):
        codes = sample_codes(2 * hidden_states, head, dola(), seeds, position, "triton")
        return codes.code + 1, codes.jsd

    for codes, expected in zip(
        torch.compile(step, fullgraph=True)(hidden, seeds, position), step(hidden, seeds, position), strict=True
    ):
        assert torch.equal(codes, expected)


@pytest.mark.parametrize("size", ["1B", "small"])
def test_four_kernels_run_and_no_others(size, fresh):
    hidden, head = case(size, torch.bfloat16, 4, fresh)
    seeds, position = torch.arange(4, device="cuda"), torch.full((4,), 3, device="cuda")
    torch.use_deterministic_algorithms(False)  # which would fill new memory with a kernel
    assert resolve_backend("auto", hidden.device, hidden.dtype) == "triton"
    sampling = SamplingTensors.repeat(dola(), 4, hidden)  # as a pass has them: on the device
    sample_codes(hidden, head, sampling, seeds, position)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        sample_codes(hidden, head, sampling, seeds, position)
        torch.cuda.synchronize()
    on_device = [event.name for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert on_device == KERNELS


def test_nothing_waits_for_the_gpu(fresh):
    hidden, head = case("1B", torch.bfloat16, 4, fresh)
    seeds, position = torch.arange(4, device="cuda"), torch.full((4,), 3, device="cuda")
    torch.use_deterministic_algorithms(False)
    sample_codes(hidden, head, dola(), seeds, position, "triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample_codes(hidden, head, dola(), seeds, position, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_images_with_non_finite_hidden_states_are_flagged_and_others_are_not(poison, fresh):
    hidden, head = case("1B", torch.bfloat16, 4, fresh)
    clean = head_scores(hidden, head, dola(), "triton")
    hidden[2, 5, 100] = poison  # the unconditional row of image 1
    actual = head_scores(hidden, head, dola(), "triton")
    assert actual.finite.tolist() == [True, False, True, True]
    assert torch.equal(actual.scores[[0, 2, 3]], clean.scores[[0, 2, 3]])


def test_backends_draw_the_same_images():
    pipe = JanusDoLa.from_pretrained("mini", device="cuda", dtype="float32")
    prompts = ["a large red circle on white", "a small blue square on grey"]
    drawn = [pipe.generate(prompts, dola=DoLaConfig(), seed=1, backend=name).tokens for name in ("triton", "torch")]
    assert torch.equal(*drawn)
