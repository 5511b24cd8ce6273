"""The kernels before and after a pass do to the bit what `Slots` does on tensors, under Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from janus_dola.engine.slots import Slots
from janus_dola.kernels.types import SampledCodes, SamplingTensors
from janus_dola.models.model import Raster
from tests.kernels.cases import CPU_BACKENDS, dola

pytestmark = pytest.mark.skipif("triton" not in CPU_BACKENDS, reason="needs Triton and its interpreter")
CODES = 3  # few, so that guesses are often right


def random_slots(slots: int, window: int, raster: Raster, g: torch.Generator, fused: bool) -> Slots:
    """Slots somewhere in their images: at the beginning, the end and beyond it, and in between."""
    params = replace(dola(), cfg_weight=None) if slots == 5 else dola()  # with one row a slot, and two
    sampling = SamplingTensors.repeat(params, slots * window, torch.zeros(1))
    result = Slots(slots, raster, window, torch.tensor([2, 5, 8]), sampling, fused)
    result.decided = torch.randint(1, raster.length + 1, (slots,), generator=g)
    result.decided[:3] = torch.tensor([1, raster.length, raster.length - 1])[:slots]
    result.tokens = torch.randint(0, CODES, result.tokens.shape, generator=g)
    result.prompt_tokens = torch.randint(1, 600, result.prompt_tokens.shape, generator=g)
    result.seeds = torch.randint(-(2**62), 2**62, (slots,), generator=g)
    result.finite = torch.rand(slots, generator=g) < 0.7
    return result


@pytest.mark.parametrize(
    "raster", [Raster(4, 6), Raster(3, 5, line_end=CODES), Raster(4, 5, small=(2, 3))],
    ids=["plain", "with line ends", "small first"],
)  # fmt: skip
@pytest.mark.parametrize(("slots", "window"), [(1, 1), (5, 1), (4, 2), (5, 5), (7, 8), (3, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_feeding_and_accepting_are_those_on_tensors_to_the_bit(raster, slots, window, dtype):
    g = torch.Generator().manual_seed(slots * window)
    state = g.get_state()
    on_tensors, fused = (random_slots(slots, window, raster, g.set_state(state), fused) for fused in (False, True))
    table = torch.randn(CODES + 1, 72, generator=g).to(dtype)
    numbers_accepted = set()
    for _ in range(6):
        expected, actual = on_tensors.feed(table), fused.feed(table)
        assert all(map(torch.equal, actual, expected))
        count = slots * window
        # mostly the guesses themselves
        guesses = on_tensors.tokens.gather(1, on_tensors.places + 1).flatten()
        other = torch.randint(0, CODES, (count,), generator=g)
        sampled = SampledCodes(
            torch.where(torch.rand(count, generator=g) < 0.8, guesses, other), torch.randint(0, 3, (count,), generator=g),
            torch.rand(count, generator=g), torch.rand(count, generator=g) < 0.95, torch.randn(count, generator=g),
        )  # fmt: skip
        before = on_tensors.decided.clone()
        on_tensors.accept(sampled)
        fused.accept(sampled)
        numbers_accepted.update((on_tensors.decided - before).tolist())
        for name in ("tokens", "layers", "jsd", "log_probs", "decided", "passes", "finite", "seeds", "prompt_tokens"):
            assert torch.equal(getattr(fused, name), getattr(on_tensors, name)), name
    assert numbers_accepted >= ({0, 1} if slots > 1 else {1})
    assert window == 1 or max(numbers_accepted) > 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("drawn", "guesses"), [("apqr", "qr"), ("apbr", "pr"), ("apbb", "pp"), ("apqb", "qb")])
def test_the_example_in_the_docstring_of_slots(fused, drawn, guesses):
    """x_0 .. x_9 are decided, a is right, b is wrong and becomes p, also where what follows repeats it."""
    sampling = SamplingTensors.repeat(dola(), 4, torch.zeros(1))
    slots = Slots(1, Raster(4, 8), 4, torch.tensor([8]), sampling, fused)
    slots.decided[0], slots.tokens[0, 9:13] = 10, torch.tensor(list(map(ord, "xabc")))
    nothing, zeros, finite = torch.zeros(4, dtype=torch.int64), torch.zeros(4), torch.ones(4, dtype=torch.bool)
    slots.accept(SampledCodes(torch.tensor(list(map(ord, drawn))), nothing, zeros, finite, zeros))
    assert slots.decided.tolist() == [12]
    assert "".join(map(chr, slots.tokens[0, 10:14])) == "ap" + guesses
