"""The fused Triton kernels: what the other backends do not have to promise. On a CPU they run under Triton's interpreter."""

import json
import warnings
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from triton.runtime import interpreter

from janus_dola.kernels import head as front
from janus_dola.kernels import philox, reference
from janus_dola.kernels.gpu import codebook, launch, project, sweep
from janus_dola.kernels.head import head_scores, resolve_backend, sample_codes
from janus_dola.kernels.head_torch import linear
from janus_dola.kernels.sampling import log_probabilities
from janus_dola.kernels.types import SamplingTensors
from tests.kernels.cases import (
    CPU_BACKENDS,
    JSD_TOLERANCE_OF_SMALL_HEADS,
    assert_accurate,
    dola,
    oracle,
    random_head,
    random_hidden,
    random_matrix,
    to,
)

pytestmark = pytest.mark.skipif("triton" not in CPU_BACKENDS, reason="needs Triton and its interpreter")
GENERATIONS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that nobody has written holds NaN and the largest integers. numpy speaks up about the NaN it meets."""
    torch.use_deterministic_algorithms(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def few_programs(monkeypatch):
    """Large blocks: the interpreter takes as long for a program with few numbers as for one with many."""
    monkeypatch.setattr(launch, "sweep_launch", lambda *_: launch.SweepLaunch(8192, 64, 8))
    monkeypatch.setattr(launch, "matmul_launch", lambda *_: launch.MatmulLaunch(1024, 16, 512, 8, 1, 2))


def launches(kernel: str) -> list[launch.MatmulLaunch]:
    """The block shapes of the table, for all GPUs. Warps and stages change nothing that is computed."""
    table = json.loads(launch.TABLE.read_text(encoding="utf-8"))
    by_name = {}
    for kernels in table.values():
        for entry in kernels[kernel]:
            blocks = [entry[f"block_{name}"] for name in ("outputs", "columns", "inputs")]
            by_name[(*blocks, entry.get("splits", 1))] = launch.MatmulLaunch(*blocks, 8, 1, entry.get("splits", 1))
    return list(by_name.values())


@pytest.mark.parametrize("blocks", launches("project"), ids=str)
@pytest.mark.parametrize("weight", [None, 5.0])
def test_all_block_shapes_project(blocks, weight):
    images = blocks.block_columns // 4 + 1  # two blocks of columns, the second hardly filled
    dtype = torch.bfloat16 if blocks.splits > 1 else torch.float32
    head, hidden = random_head(700, 75, 5, dtype, seed=1), random_hidden(2, images, 700, dtype, seed=1)
    normed = reference.rms_norm(hidden.double(), head.norm_weight, head.norm_eps)
    expected = torch.nn.functional.gelu(linear(normed, head.proj_weight, head.proj_bias))
    x = (normed / 16).to(torch.float32 if dtype == torch.float32 else torch.float16)
    weights = None if weight is None else torch.linspace(weight, weight + 1, images)
    actual = project.project(x, head, weights, launch=blocks)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert torch.allclose(16 * actual.double(), reference.guide(expected, weights), atol=tolerance, rtol=0)


@pytest.mark.parametrize("layers", [1, 4])
def test_bits_are_the_same_whichever_program_is_last_and_counters_begin_anew(monkeypatch, layers):
    """The interpreter runs one program after the other; here also in the opposite order. A graph makes no new counters."""
    head, hidden = random_head(700, 75, 300, torch.bfloat16, 1), random_hidden(layers, 9, 700, torch.bfloat16, 1)
    sampling = SamplingTensors.repeat(dola(premature=0 if layers == 1 else None), 9, hidden)
    seeds, x = torch.arange(9), reference.rms_norm(hidden, head.norm_weight, head.norm_eps).half() / 16
    arrived = torch.zeros(project.counters(x, head) + 9, dtype=torch.int32)
    blocks = launch.MatmulLaunch(64, 16, 128, 4, 1, 4)
    monkeypatch.setattr(launch, "sweep_launch", lambda *_: launch.SweepLaunch(64, 64, 4))

    def stage():
        y = project.project(x, head, sampling.cfg_weight, arrived, blocks)
        swept = sweep.sweep(*codebook.codebook(y, head), sampling, seeds, seeds, arrived)
        assert not arrived.any()
        return y, *vars(swept).values()

    first = stage()
    builder = interpreter.interpreter_builder
    here, programs = builder.set_grid_idx, []

    def opposite(*place):
        here(*(size - 1 - at for size, at in zip(builder.grid_dim, place, strict=True)))
        programs.append(place)

    monkeypatch.setattr(builder, "set_grid_idx", opposite)
    assert all(map(torch.equal, stage(), first))
    assert len(programs) > 50


@pytest.mark.parametrize("blocks", launches("codebook"), ids=str)
def test_all_block_shapes_give_logits(blocks):
    images = blocks.block_columns // 2 + 1
    dtype = torch.bfloat16 if blocks.block_outputs > 64 else torch.float32
    head = random_head(5, 200, 300, dtype, seed=1)
    x = torch.randn(2, images, 200, generator=torch.Generator().manual_seed(1)) / 16
    x = x.to(torch.float32 if dtype == torch.float32 else torch.float16)
    logits, tile_max, tile_sum = codebook.codebook(x, head, blocks)
    expected = linear(16 * x.double(), head.code_weight, head.code_bias)
    assert torch.allclose(logits.double(), expected, atol=1e-3)
    assert torch.allclose((tile_max.double().exp() * tile_sum).sum(-1), expected.exp().sum(-1), rtol=1e-3)


@pytest.mark.parametrize("block", [4, 128, 512])
def test_all_block_sizes_draw_the_same(monkeypatch, block):
    codes = min(1100, 9 * block + 2)
    head, hidden = random_head(16, 16, codes, torch.float32, seed=3), random_hidden(3, 1, 16, torch.float32, seed=3)
    seeds = torch.tensor([5])
    expected = sample_codes(hidden, head, dola(), seeds, 3, "torch")
    for most in (1, 3):
        monkeypatch.setattr(launch, "sweep_launch", lambda *_, most=most: launch.SweepLaunch(block, most, 8))
        sampled = sample_codes(hidden, head, dola(), seeds, 3, "triton")
        assert torch.equal(sampled.code, expected.code)
        assert torch.equal(sampled.layer, expected.layer)
        assert torch.allclose(sampled.jsd, expected.jsd, atol=1e-6)
        assert torch.allclose(sampled.log_prob, expected.log_prob, atol=1e-5)


@pytest.mark.parametrize(("layers", "rows"), [(1, 1), (1, 65), (16, 1), (16, 5)])
def test_extreme_numbers_of_rows_and_layers(layers, rows):
    head, hidden = random_head(33, 17, 70, torch.float32, seed=2), random_hidden(layers, 64, 33, torch.float32, seed=2)
    params = dola(None, premature=0 if layers == 1 else None)
    scores = head_scores(hidden[:, :rows], head, params, "triton")
    assert assert_accurate(scores, hidden[:, :rows], head, params) > 0


def test_640_pairs_of_64_slots_with_two_codes_each():
    head = random_head(33, 17, 70, torch.float32, seed=2)
    hidden = random_hidden(5, 128, 33, torch.float32, seed=2)
    normed = reference.rms_norm(hidden, head.norm_weight, head.norm_eps)
    logits, _, _ = codebook.codebook(project.project(normed / 16, head, torch.full((128,), 5.0)), head)
    expected = reference.guide(reference.apply_head(normed.double(), to(head, torch.float64)), 5.0)
    assert torch.allclose(logits.double(), expected, atol=1e-4)


@pytest.mark.parametrize(("dtype", "params"), [(torch.bfloat16, dola()), (torch.float16, dola(alpha=0.0, premature=2))])
def test_accuracy_at_the_width_of_janus_pro_1b(few_programs, dtype, params):
    head, hidden = random_head(2048, 2048, 4096, dtype, seed=3), random_hidden(3, 1, 2048, dtype, seed=3)
    scores = head_scores(hidden, head, params, "triton")
    assert assert_accurate(scores, hidden, head, params) > 0


def test_accuracy_with_the_largest_vocabularies_of_text_models(few_programs, monkeypatch):
    monkeypatch.setattr(launch, "matmul_launch", lambda *_: launch.MatmulLaunch(1024, 16, 16, 8, 1))
    head = random_matrix(16, 262_144, torch.bfloat16, seed=4, bias=False)
    hidden = random_hidden(3, 1, 16, torch.bfloat16, seed=4)[:, :1]
    params = dola(None, alpha=0.0)
    scores = head_scores(hidden, head, params, "triton")
    assert assert_accurate(scores, hidden, head, params, JSD_TOLERANCE_OF_SMALL_HEADS) > 0


@pytest.mark.parametrize(
    ("temperature", "premature", "alpha"),
    [(0.0, None, 0.1), (0.0, 1, 0.0), (0.3, None, 0.0), (0.3, 3, 0.1), (1.0, None, 0.1), (1.0, 3, 0.0), (2.5, 1, 0.1),
     (2.5, None, 0.0)],
)  # fmt: skip
def test_codes_are_those_of_the_reference_wherever_the_choice_is_clear(temperature, premature, alpha):
    head, hidden = random_head(48, 32, 600, torch.float32, seed=5), random_hidden(4, 3, 48, torch.float32, seed=5)
    params = dola(3.0, temperature, alpha, premature)
    seeds = torch.arange(3) * 2**40 + 123
    expected, _, _ = oracle(hidden, head, params)
    for position in (575, torch.tensor([0, 1, 575])):
        codes = sample_codes(hidden, head, params, seeds, position, "triton")
        assert torch.equal(codes.layer, expected.layer)
        race = expected.scores
        if temperature > 0:
            race = race / temperature + philox.gumbel_noise(seeds, position, 600)
        best = race.topk(2).values
        clear = best[:, 0] - best[:, 1] > 1e-3
        assert clear.any()
        assert torch.equal(codes.code[clear], race.argmax(-1)[clear])
        log_p = log_probabilities(expected.scores, temperature, codes.code)
        assert torch.allclose(codes.log_prob[clear].double(), log_p[clear], atol=1e-5 / (temperature or 1))


def test_noise_is_that_of_philox_bit_for_bit_in_its_words():
    """With equal logits the code is where the noise is largest."""
    head = random_matrix(16, 1500, torch.float32, seed=6, bias=False)
    head = replace(head, code_weight=torch.zeros_like(head.code_weight))
    hidden = random_hidden(1, 5, 16, torch.float32, seed=6)
    seeds = torch.randint(-(2**62), 2**62, (10,), generator=torch.Generator().manual_seed(0))
    params = dola(None, 1.0, 0.0, 0)
    for position in (575, torch.arange(10) * 7):
        words = philox.random_words(seeds, position, 1500)
        codes = sample_codes(hidden, head, params, seeds, position, "triton")
        # the largest Gumbel noise comes from the smallest word; equal words in float32 are as good
        drawn = words.gather(1, codes.code[:, None]).squeeze(1).float()
        assert torch.equal(drawn, words.min(-1).values.float())


@pytest.mark.parametrize("with_projection", [True, False])
def test_launches_are_made_on_the_device_of_the_tensors(monkeypatch, with_projection):
    """Triton takes the current device. The guard is replaced by one that records, and knows when it is left."""
    on, launched = [], []

    @contextmanager
    def device_of(tensor):
        on.append(tensor)
        yield
        on.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("normalise", "project", "codebook", "sweep", "scores"):
        whole = getattr(front.head_triton, name)

        def record(*args, whole=whole, name=name, **settings):
            assert on[0].shape == (3, 2, 16)  # the hidden states
            launched.append(name)
            return whole(*args, **settings)

        monkeypatch.setattr(front.head_triton, name, record)
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, 1, 16, torch.float32, seed=3)
    if not with_projection:
        head = replace(head, proj_weight=None, proj_bias=None)
    head_scores(hidden, head, dola(), "triton")
    expected = ["normalise", "project", "codebook", "sweep", "scores"]
    assert launched == [name for name in expected if with_projection or name != "project"]
    assert on == []


def test_a_head_that_is_trained_on_is_read_anew():
    """The kernels keep no copy of the weights: not even a change that no version counter sees goes unnoticed."""
    head, hidden = random_head(16, 16, 50, torch.bfloat16, seed=3), random_hidden(3, 1, 16, torch.bfloat16, seed=3)
    head_scores(hidden, head, dola(), "triton")
    head.code_weight.data += 0.1 * torch.randn(50, 16)
    head.proj_weight.data *= 2
    scores = head_scores(hidden, head, dola(), "triton")
    assert_accurate(scores, hidden, head, dola(), JSD_TOLERANCE_OF_SMALL_HEADS)


def test_equal_layers_give_the_lowest():
    """With one weight for each output no sum rounds, so that equal layers have equal logits in any order of summation."""
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, 4, 16, torch.float32, seed=3)
    one_each = torch.eye(16)[torch.arange(50) % 16] * torch.linspace(0.5, 2, 50).unsqueeze(-1)
    head = replace(head, proj_weight=torch.eye(16), code_weight=one_each)
    twice = torch.stack([hidden[0], hidden[0], hidden[1], hidden[1], hidden[2]])
    once = head_scores(hidden, head, dola(), "triton")
    assert torch.equal(head_scores(twice, head, dola(), "triton").layer, 2 * once.layer)


def test_equal_scores_give_the_lowest_code():
    head = random_matrix(16, 2100, torch.float32, seed=6, bias=True)
    head = replace(head, code_weight=torch.zeros_like(head.code_weight), code_bias=torch.zeros_like(head.code_bias))
    head.code_bias[[2000, 1030, 7]] = 4.0
    params = dola(None, 0.0, 0.1, 0)
    codes = sample_codes(random_hidden(1, 1, 16, torch.float32, 6), head, params, torch.zeros(2).long(), 0, "triton")
    assert codes.code.tolist() == [7, 7]


@pytest.mark.parametrize("params", [dola(), dola(None, 0.0, 0.0, 0), dola(top_k=5)])
def test_operator_is_what_torch_expects(params):
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(2, 1, 16, torch.float32, seed=3)
    seeds = torch.arange(1 if params.cfg_weight is not None else 2)
    each = SamplingTensors.repeat(params, len(seeds), hidden)
    arguments = (
        hidden, head.norm_weight, head.norm_eps, head.code_weight, head.code_bias, head.proj_weight, head.proj_bias,
        each.method, " ".join(each.flat()), list(each.flat().values()), seeds, seeds + 3, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.janus_dola.sample_codes.default, arguments)


def test_compiles_without_a_graph_break():
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, 2, 16, torch.float32, seed=3)

    def step(hidden_states, seeds, position):
        codes = sample_codes(2 * hidden_states, head, dola(), seeds, position, "triton")
        return codes.code + 1, codes.jsd

    arguments = (hidden, torch.tensor([5, 6]), torch.tensor([3, 0]))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for codes, expected in zip(compiled(*arguments), step(*arguments), strict=True):
        assert torch.equal(codes, expected)


def test_every_size_has_launch_parameters():
    for generation in GENERATIONS:
        for images in (1, 4, 5, 2048):
            assert launch.sweep_launch(generation, images).block_codes % 4 == 0  # noise comes four codes at a time
        for kernel in ("project", "codebook"):
            for bits in (16, 32):
                for columns in (1, 16, 17, 33, 65, 2048):
                    for outputs in (1, 2048, 4096, 262_144):
                        actual = launch.matmul_launch(kernel, generation, bits, columns, outputs)
                        assert actual.block_inputs % 16 == 0


def test_double_precision_is_refused():
    head, hidden = random_head(16, 16, 50, torch.float64, seed=3), random_hidden(3, 2, 16, torch.float64, seed=3)
    with pytest.raises(ValueError, match="needs float16, bfloat16 or float32, got torch.float64; 'auto' takes"):
        head_scores(hidden, head, dola(), "triton")


def test_a_cpu_is_refused_unless_interpreted(monkeypatch):
    monkeypatch.setattr(front.head_triton, "INTERPRETED", False)
    with pytest.raises(ValueError, match="backend 'triton' needs a GPU, got tensors on cpu"):
        resolve_backend("triton", torch.device("cpu"), torch.float32)


def test_without_triton_there_are_two_backends(monkeypatch):
    monkeypatch.setattr(front, "head_triton", None)
    assert resolve_backend("auto", torch.device("cuda"), torch.bfloat16) == "torch"
    with pytest.raises(ValueError, match="needs Triton, which is not installed"):
        resolve_backend("triton", torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize(
    ("capability", "generation"),
    [((8, 0), "sm_80"), ((8, 6), "sm_89"), ((9, 0), "sm_90"), ((10, 0), "sm_100"), ((12, 0), "sm_89"), ((7, 5), None)],
)
def test_gpus_and_their_launch_parameters(monkeypatch, capability, generation):
    properties = type("Properties", (), {"major": capability[0], "minor": capability[1]})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(front.head_triton, "INTERPRETED", False)
    device = torch.device("cuda")
    if generation is None:
        assert resolve_backend("auto", device, torch.bfloat16) == "torch"
        with pytest.raises(ValueError, match=r"needs a GPU of compute capability 8.0 or higher, got 7.5"):
            resolve_backend("triton", device, torch.bfloat16)
    else:
        assert resolve_backend("auto", device, torch.bfloat16) == "triton"
        assert launch.generation_of(device) == generation


def test_double_precision_on_a_gpu_is_left_to_torch():
    assert resolve_backend("auto", torch.device("cuda"), torch.float64) == "torch"


def test_weights_must_be_contiguous():
    head = random_head(16, 16, 50, torch.float32, seed=3)
    with pytest.raises(ValueError, match=r"code_weight must be contiguous, got strides \(1, 50\)"):
        replace(to(head, torch.float32), code_weight=head.code_weight.T.contiguous().T)
