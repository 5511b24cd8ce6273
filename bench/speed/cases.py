"""Makes random inputs of the head stage that do not fit into a cache together, and calls with them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.speed import floor
from janus_dola.kernels.packed import PackedHalf
from janus_dola.kernels.types import Head, SamplingTensors
from janus_dola.settings import DrawSettings

CACHE = 64 << 20  # bytes; no less than the second-level cache of the GPUs this runs on
TIMES_THE_CACHE = {"cuda": 8, "cpu": 2}  # which is not emptied from its oldest entry on: a part would stay over a round
MOST = 16  # cases, where one is small
SPREADS = {"flat": 0.25, "as drawn": 1.0, "peaked": 4.0}  # of the logits, over those of a plain random head
GUIDED = DrawSettings().sampling_params(())


@dataclass(frozen=True)
class Case:
    """Inputs of one call."""

    hidden_states: Tensor  # [L, 2B, D]
    head: Head
    sampling: SamplingTensors  # of B images; on the device, as a pass has them, for making them is not what is timed
    seeds: Tensor  # [B]
    position: Tensor  # [B]


def number_of_cases(bytes_of_one: int, device: str) -> int:
    """Returns how many cases do not fit into the cache together, at the most `MOST`."""
    return min(MOST, -(-TIMES_THE_CACHE[device] * CACHE // bytes_of_one))


def random_cases(
    shape: floor.HeadShape,
    layers: int,
    images: int,
    dtype: torch.dtype,
    device: str,
    spread: str = "as drawn",
) -> list[Case]:
    """Makes cases that together do not fit into the cache, never of zeros. float16 on a CPU is packed.

    `spread` is one of `SPREADS`: hundreds of codes are plausible where logits are flat, one or two where they are peaked,
    and the sweep has most to do with flat ones.
    """
    width = shape.hidden if shape.width is None else shape.width
    size = floor.head_stage(shape, layers, images, dtype).bytes
    packed = device == "cpu" and dtype == torch.float16
    dtype = torch.float32 if packed else dtype
    made = []
    for _ in range(number_of_cases(size, device)):

        def normal(*sizes: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*sizes, device=device).mul_(scale).to(dtype)

        def matrix(outputs: int, inputs: int, scale: float) -> Tensor | PackedHalf:
            weight = normal(outputs, inputs, scale=scale)
            return PackedHalf(weight) if packed else weight

        head = Head(
            norm_weight=normal(shape.hidden, scale=0.1) + 1,
            norm_eps=1e-6,
            code_weight=matrix(shape.codes, width, SPREADS[spread] * 1.7 * width**-0.5),
            code_bias=normal(shape.codes, scale=0.1),
            proj_weight=None if shape.width is None else matrix(width, shape.hidden, shape.hidden**-0.5),
            proj_bias=None if shape.width is None else normal(width, scale=0.1),
        )
        hidden_states = normal(layers, 2 * images, shape.hidden)
        seeds = torch.randint(0, 2**40, (images,), device=device)
        sampling = SamplingTensors.repeat(GUIDED, images, hidden_states)
        made.append(Case(hidden_states, head, sampling, seeds, torch.full_like(seeds, 7)))
    return made


def calls(cases: list[Case], call: Callable[[Case], object]) -> list[Callable[[], object]]:
    """Returns one call for each case."""
    return [lambda case=case: call(case) for case in cases]
