"""The fused Triton kernels: what the other backends do not have to promise. On a CPU they run under Triton's interpreter."""

import warnings
from dataclasses import replace

import pytest
import torch

from janus_dola.kernels import early_exit as front
from janus_dola.kernels import launch, philox
from janus_dola.kernels.early_exit import early_exit, early_exit_scores, resolve_backend
from janus_dola.kernels.types import Decoding
from tests.kernels.cases import (
    CPU_BACKENDS,
    JSD_TOLERANCE_OF_SMALL_HEADS,
    assert_accurate,
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
def generation(request, monkeypatch):
    """Launch parameters of another GPU."""
    monkeypatch.setattr(launch, "_generation", lambda device: request.param)


@pytest.mark.parametrize("generation", GENERATIONS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("layers", "images"), [(5, 1), (2, 13), (9, 5), (5, 16)])  # each bucket of the table
def test_all_launch_parameters_give_the_same_distribution(generation, dtype, layers, images):
    head, hidden = random_head(100, 75, 1100, dtype, seed=1), random_hidden(layers, images, 100, dtype, seed=1)
    found = early_exit_scores(hidden, head, Decoding(), "triton")
    assert assert_accurate(found, hidden, head, Decoding(), JSD_TOLERANCE_OF_SMALL_HEADS) > 0


@pytest.mark.parametrize(("layers", "rows"), [(1, 1), (1, 128), (16, 1), (16, 127)])
def test_extreme_numbers_of_rows_and_layers(layers, rows):
    head, hidden = random_head(33, 17, 70, torch.float32, seed=2), random_hidden(layers, 64, 33, torch.float32, seed=2)
    decoding = Decoding(None, premature=0 if layers == 1 else None)
    found = early_exit_scores(hidden[:, :rows], head, decoding, "triton")
    assert assert_accurate(found, hidden[:, :rows], head, decoding) > 0


@pytest.mark.parametrize(
    ("dtype", "decoding"), [(torch.bfloat16, Decoding()), (torch.float16, Decoding(alpha=0.0, premature=4))]
)
def test_accuracy_at_the_size_of_janus_pro_1b(dtype, decoding):
    head, hidden = random_head(2048, 2048, 16384, dtype, seed=3), random_hidden(5, 2, 2048, dtype, seed=3)
    found = early_exit_scores(hidden, head, decoding, "triton")
    assert assert_accurate(found, hidden, head, decoding) > 0


def test_accuracy_with_the_largest_vocabularies_of_text_models():
    head = random_matrix(64, 262_144, torch.bfloat16, seed=4, bias=False)
    hidden = random_hidden(3, 1, 64, torch.bfloat16, seed=4)[:, :1]
    decoding = Decoding(None, alpha=0.0)
    found = early_exit_scores(hidden, head, decoding, "triton")
    assert assert_accurate(found, hidden, head, decoding, JSD_TOLERANCE_OF_SMALL_HEADS) > 0


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("premature", [None, 1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_codes_are_those_of_the_reference_wherever_the_choice_is_clear(temperature, premature, alpha):
    head, hidden = random_head(48, 32, 3000, torch.float32, seed=5), random_hidden(4, 6, 48, torch.float32, seed=5)
    decoding = Decoding(3.0, temperature, alpha, premature)
    seeds = torch.arange(6) * 2**40 + 123
    expected, _, _ = oracle(hidden, head, decoding)
    for position in (0, 575, torch.tensor([0, 1, 575, 3, 0, 7])):
        found = early_exit(hidden, head, decoding, seeds, position, "triton")
        assert torch.equal(found.layer, expected.layer)
        race = expected.scores
        if temperature > 0:
            race = race / temperature + philox.gumbel_noise(seeds, position, 3000)
        best = race.topk(2).values
        clear = best[:, 0] - best[:, 1] > 1e-3
        assert clear.any()
        assert torch.equal(found.code[clear], race.argmax(-1)[clear])


def test_noise_is_that_of_philox_bit_for_bit_in_its_words():
    """With equal logits the code is where the noise is largest."""
    head = random_matrix(16, 1500, torch.float32, seed=6, bias=False)
    head = replace(head, code_weight=torch.zeros_like(head.code_weight))
    hidden = random_hidden(1, 16, 16, torch.float32, seed=6)
    seeds = torch.randint(-(2**62), 2**62, (32,), generator=torch.Generator().manual_seed(0))
    decoding = Decoding(None, 1.0, 0.0, 0)
    for position in (0, 575, torch.arange(32) * 7):
        words = philox.random_words(seeds, position, 1500)
        found = early_exit(hidden, head, decoding, seeds, position, "triton")
        # the largest Gumbel noise comes from the smallest word; equal words in float32 are as good
        drawn = words.gather(1, found.code[:, None]).squeeze(1).float()
        assert torch.equal(drawn, words.min(-1).values.float())


def test_equal_layers_give_the_lowest():
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, 4, 16, torch.float32, seed=3)
    twice = torch.stack([hidden[0], hidden[0], hidden[1], hidden[1], hidden[2]])
    once = early_exit_scores(hidden, head, Decoding(), "triton")
    assert torch.equal(early_exit_scores(twice, head, Decoding(), "triton").layer, 2 * once.layer)


def test_equal_scores_give_the_lowest_code():
    head = random_matrix(16, 2100, torch.float32, seed=6, bias=True)
    head = replace(head, code_weight=torch.zeros_like(head.code_weight), code_bias=torch.zeros_like(head.code_bias))
    head.code_bias[[2000, 1030, 7]] = 4.0
    decoding = Decoding(None, 0.0, 0.1, 0)
    found = early_exit(random_hidden(1, 1, 16, torch.float32, 6), head, decoding, torch.zeros(2).long(), 0, "triton")
    assert found.code.tolist() == [7, 7]


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(None, 0.0, 0.0, 0)])
def test_operator_is_what_torch_expects(decoding):
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, 2, 16, torch.float32, seed=3)
    seeds = torch.arange(decoding.images(4))
    arguments = (
        hidden, head.norm_weight, head.norm_eps, head.code_weight, head.code_bias, head.proj_weight, head.proj_bias,
        decoding.cfg_weight, decoding.temperature, decoding.alpha, decoding.premature, seeds, seeds + 3, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.janus_dola.early_exit.default, arguments)


def test_compiles_without_a_graph_break():
    head, hidden = random_head(16, 16, 50, torch.float32, seed=3), random_hidden(3, 2, 16, torch.float32, seed=3)

    def step(hidden_states, seeds, position):
        found = early_exit(2 * hidden_states, head, Decoding(), seeds, position, "triton")
        return found.code + 1, found.jsd

    arguments = (hidden, torch.tensor([5, 6]), torch.tensor([3, 0]))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(*arguments), step(*arguments), strict=True):
        assert torch.equal(found, expected)


def test_every_size_has_launch_parameters():
    for generation in GENERATIONS:
        assert launch.sweep_launch(generation).block_codes % 4 == 0  # noise comes four codes at a time
        for kernel in ("project", "codebook"):
            for bits in (16, 32):
                for pairs in (1, 16, 17, 33, 65, 2048):
                    for outputs in (1, 2048, 4096, 262_144):
                        found = launch.matmul_launch(kernel, generation, bits, pairs, outputs)
                        assert found.block_inputs % 16 == 0


def test_double_precision_is_refused():
    head, hidden = random_head(16, 16, 50, torch.float64, seed=3), random_hidden(3, 2, 16, torch.float64, seed=3)
    with pytest.raises(ValueError, match="needs float16, bfloat16 or float32, got torch.float64; 'auto' takes"):
        early_exit_scores(hidden, head, Decoding(), "triton")


def test_a_cpu_is_refused_unless_interpreted(monkeypatch):
    monkeypatch.setattr(front.fused, "INTERPRETED", False)
    with pytest.raises(ValueError, match="backend 'triton' needs a GPU, got tensors on cpu"):
        resolve_backend("triton", torch.device("cpu"), torch.float32)


def test_without_triton_there_are_two_backends(monkeypatch):
    monkeypatch.setattr(front, "fused", None)
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
    monkeypatch.setattr(front.fused, "INTERPRETED", False)
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
