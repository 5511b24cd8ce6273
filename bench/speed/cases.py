"""Random inputs of the early-exit stage that do not fit into a cache together, and how a benchmark calls with them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.speed import floor
from janus_dola.kernels.packed import PackedHalf
from janus_dola.kernels.types import Decoding, Decodings, Head

CACHE = 64 << 20  # bytes; no less than the second-level cache of the GPUs this runs on
MOST = 16  # cases of a small head
GUIDED = Decoding()


@dataclass(frozen=True)
class Case:
    """Inputs of one call."""

    hidden_states: Tensor  # [L, 2B, D]
    head: Head
    seeds: Tensor  # [B]
    position: Tensor  # [B]


def guided(case: Case) -> Decodings:
    """The default settings for each image of a case."""
    return GUIDED.repeated(len(case.seeds), case.hidden_states)


def random_cases(shape: floor.HeadShape, layers: int, images: int, dtype: torch.dtype, device: str) -> list[Case]:
    """So many cases that together they do not fit into the cache. Never zeros. float16 on a CPU is packed."""
    width = shape.hidden if shape.width is None else shape.width
    size = floor.head_stage(shape, layers, images, dtype).bytes
    packed = device == "cpu" and dtype == torch.float16
    dtype = torch.float32 if packed else dtype
    found = []
    for _ in range(min(MOST, -(-2 * CACHE // size))):

        def normal(*sizes: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*sizes, device=device).mul_(scale).to(dtype)

        def matrix(outputs: int, inputs: int, scale: float) -> Tensor | PackedHalf:
            weight = normal(outputs, inputs, scale=scale)
            return PackedHalf(weight) if packed else weight

        head = Head(
            norm_weight=normal(shape.hidden, scale=0.1) + 1,
            norm_eps=1e-6,
            code_weight=matrix(shape.codes, width, 1.7 * width**-0.5),
            code_bias=normal(shape.codes, scale=0.1),
            proj_weight=None if shape.width is None else matrix(width, shape.hidden, shape.hidden**-0.5),
            proj_bias=None if shape.width is None else normal(width, scale=0.1),
        )
        hidden_states = normal(layers, 2 * images, shape.hidden)
        seeds = torch.randint(0, 2**40, (images,), device=device)
        found.append(Case(hidden_states, head, seeds, torch.full_like(seeds, 7)))
    return found


def calls(cases: list[Case], call: Callable[[Case], object]) -> list[Callable[[], object]]:
    """One call for each case."""
    return [lambda case=case: call(case) for case in cases]
