"""Admission and the pass on tensors without data ("meta"): what reads a value back raises, what mixes devices is seen.

Only such a pass can be captured in a CUDA graph, and the host waits for nothing in it. It needs no GPU.
"""

import weakref
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.decoder import Decoder, DecoderKey
from janus_dola.engine.jobs import Job
from janus_dola.engine.plan import make_plan
from janus_dola.kernels import head as front
from janus_dola.kernels.block_torch import Beside, BlockWeights, Matrix, Norm, PassStart, Rotary
from janus_dola.kernels.types import Head, SamplingTensors
from janus_dola.models import PromptRows, adapt
from janus_dola.models.weights import WeightReader
from janus_dola.settings import DrawSettings
from tests.kernels.blocks import Kernel, Launches

TO_THE_DEVICE = {"aten._to_copy.default", "aten.copy_.default"}  # of numbers that the host knows
ROWS = [PromptRows([1] * length, [2] * length) for length in (5, 9)]


class Watch(TorchDispatchMode):
    """Notes operators that leave the device, and copies to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.copied, self.bad = 0, 0, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.seen += 1
        given, made = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.dim() > 0}
            for tree in ((args, kwargs), result)
        )
        if "cpu" in given and "meta" in made and str(operator) in TO_THE_DEVICE:
            self.copied += 1
        elif len(given | made) > 1 or ("cpu" in made and not given):
            self.bad.append(str(operator))
        return result


def without_data(thing):
    """The same weights on "meta"."""
    if isinstance(thing, Tensor):
        return thing.to("meta")
    if isinstance(thing, tuple):
        return tuple(map(without_data, thing))
    if hasattr(thing, "__dataclass_fields__"):
        return replace(
            thing, **{field.name: without_data(getattr(thing, field.name)) for field in fields(thing) if field.init}
        )
    return thing


@pytest.fixture(scope="module")
def model():
    """Parts and weights of the mini model, without their data."""
    pipe = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32")
    with torch.no_grad():
        weights = without_data(WeightReader(pipe.image_model).read())
    return adapt(pipe.model.to("meta")), weights


@pytest.mark.parametrize(("sampler", "window"), [("multinomial", 1), ("gumbel", 1), ("gumbel", 4), ("gumbel", 8)])
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize(
    ("dola", "temperature"),
    [(None, 1.0), (DoLaConfig(), 1.0), (DoLaConfig(premature_layer=4), 1.0), (DoLaConfig(), 0.0)],
    ids=["baseline", "dola", "static", "greedy"],
)
@torch.no_grad()
def test_the_host_waits_for_nothing(model, monkeypatch, dola, temperature, backend, sampler, window):
    if front.head_triton is None:
        pytest.skip("needs Triton")
    image_model, weights = model
    monkeypatch.setattr(front.head_triton, "why_not", lambda device, dtype: None)  # runs on "meta" as on a GPU
    launches = Launches(monkeypatch)
    settings = DrawSettings(5.0, temperature, dola)
    plan = replace(make_plan(image_model, settings, sampler, backend, "eager"), window=window)
    params = settings.sampling_params(plan.layers)
    decoder = Decoder(image_model, weights, DecoderKey(plan, 3, 128), params)
    jobs = [Job(i, i, 0, rows, 7 + i, params) for i, rows in enumerate(ROWS)]
    with Watch() as admission:
        decoder.admit([0, 2], jobs)
    assert admission.copied >= 3  # of slots, lengths and seeds
    with Watch() as stepping:
        for visible in (64, 128):
            decoder.step(visible)
    with Watch() as handing_out:
        drawn = decoder.slots.codes(2)
    assert stepping.seen > 100
    own = [launches.names.count(f"_{name}_kernel") for name in ("projected", "gated", "attention", "combine", "added")]
    blocks = 2 * image_model.num_layers  # in two passes
    assert own == ([blocks, blocks, blocks, blocks, 2 * blocks] if backend == "triton" else [0] * 5)
    assert stepping.copied == handing_out.copied == 0
    assert admission.bad == stepping.bad == handing_out.bad == []
    assert drawn.tokens.shape == (image_model.image_tokens,)


@pytest.mark.parametrize("window", [1, 8])
@torch.no_grad()
def test_launches_of_a_pass_are_those_of_its_forecast(model, monkeypatch, window):
    """Six a block, the head stage (one operator here), and what feeds the blocks, stacks their states and accepts codes."""
    if front.head_triton is None:
        pytest.skip("needs Triton")
    from bench.forecast.whole_pass import SMALL_LAUNCHES

    image_model, weights = model
    monkeypatch.setattr(front.head_triton, "why_not", lambda device, dtype: None)
    plan = replace(make_plan(image_model, DrawSettings(), "gumbel", "triton", "eager"), window=window)
    decoder = Decoder(image_model, weights, DecoderKey(plan, 3, 128), DrawSettings().sampling_params(plan.layers))
    with Launches(monkeypatch) as launches:
        decoder.step(64)
    around = ["_feed_kernel", "_weigh_kernel", "_accept_kernel", "aten::stack", "janus_dola::sample_codes"]
    assert [launches.names.count(name) for name in around] == [1] * 5
    assert len(launches.names) == 6 * image_model.num_layers + 1 + SMALL_LAUNCHES


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that live at once, of those made inside: the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (key := leaf.untyped_storage()._cdata) not in self._live:
                self._live[key] = leaf.untyped_storage().nbytes()
                self.most = max(self.most, sum(self._live.values()))
                weakref.finalize(leaf.untyped_storage(), self._live.pop, key)
        return result


@pytest.mark.parametrize("window", [1, 8])
def test_layers_take_no_more_memory_than_the_check_on_a_gpu_allows(monkeypatch, window):
    """Four blocks and the head of the 7B shape, 16 images: with three layers, and with none."""
    if front.head_triton is None:
        pytest.skip("needs Triton")
    from janus_dola.kernels import block_triton
    from janus_dola.kernels.gpu import codebook, normalise, project, sweep
    from tests.janus_dola.test_engine_on_gpu import MIB, bytes_of_layers

    Launches(monkeypatch)  # kernels do nothing
    for module in (codebook, normalise, project, sweep):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Kernel(lambda: None))
    hidden, inner, codes, images = 4096, 11008, 16384, 16 * window

    def new(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    qkv, gate_up = (
        Beside(tuple(Matrix(new(outputs, hidden)) for _ in range(count)))
        for count, outputs in ((3, hidden), (2, inner))
    )
    norm, output, down = Norm(new(hidden), 1e-6), Matrix(new(hidden, hidden)), Matrix(new(hidden, inner))
    blocks = [BlockWeights(norm, qkv, output, norm, gate_up, down, 32, 32, 128, 128**-0.5)] * 4
    head = Head(new(hidden), 1e-6, new(codes, hidden), new(codes), new(hidden, hidden), new(hidden))
    keys_values, seeds = new(4, 32, 128, 2, 32, 128), new(images, dtype=torch.int64)
    start = PassStart(new(32, dtype=torch.int64), Rotary(new(2048, 128), new(2048, 128)), 64)
    sampling = SamplingTensors.repeat(DrawSettings().sampling_params(()), images, new(1, dtype=torch.float32))
    monkeypatch.setattr(front.head_triton, "_sample_codes", front.head_triton._sample_codes._init_fn)
    most = []
    for layers in ([], [1, 2, 3]):
        with Memory() as memory:
            states = block_triton.run_blocks(new(2 * images, hidden), blocks, keys_values, start, layers)
            front.head_triton.sample_codes(states, head, sampling, seeds, seeds)
            del states
        most.append(memory.most)
    assert 0.5 * bytes_of_layers(3, 2 * images) < most[1] - most[0] <= bytes_of_layers(3, 2 * images) + 2 * MIB


def test_what_reads_a_value_back_is_seen():
    numbers = torch.zeros(3, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        numbers.sum().item()
    with Watch() as watch:
        torch.zeros(3) + 1
    assert watch.bad
