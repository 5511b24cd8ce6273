"""The early-exit stage on a GPU: how long each backend takes, and what share of the floor that is.

Every time is of `CALLS` calls on different inputs and weights, together larger than the cache, captured in one CUDA graph:
kernels alone, without the time Python takes to launch them. The reference is timed as it is used, eagerly.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import floor
import torch
from timing import Timing, eager, graphed

from janus_dola.kernels import batched
from janus_dola.kernels.codebook import codebook
from janus_dola.kernels.early_exit import early_exit
from janus_dola.kernels.project import project
from janus_dola.kernels.sampling import gumbel_max
from janus_dola.kernels.sweep import sweep
from janus_dola.kernels.types import Decoding, EarlyExit, Head

CACHE = 64 << 20  # bytes; no less than the second-level cache of the GPUs this runs on
IMAGES = (1, 4, 16, 32)
CANDIDATES = (1, 4, 8)
COMPILED_CANDIDATES = 4  # compiling takes long


@dataclass(frozen=True)
class Case:
    """Inputs of one call, on the GPU."""

    hidden_states: torch.Tensor  # [L, 2B, D]
    head: Head
    seeds: torch.Tensor  # [B]
    position: torch.Tensor  # [1]


def random_cases(shape: floor.HeadShape, layers: int, images: int, dtype: torch.dtype) -> list[Case]:
    """So many cases that their weights do not fit into the cache together."""
    width = shape.hidden if shape.width is None else shape.width
    size = floor.head_stage(shape, layers, images, dtype).bytes
    found = []
    for _ in range(max(2, -(-2 * CACHE // size))):

        def normal(*sizes: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*sizes, device="cuda") * scale).to(dtype)

        head = Head(
            norm_weight=normal(shape.hidden, scale=0.1) + 1,
            norm_eps=1e-6,
            code_weight=normal(shape.codes, width, scale=1.7 * width**-0.5),
            code_bias=normal(shape.codes, scale=0.1),
            proj_weight=None if shape.width is None else normal(width, shape.hidden, scale=shape.hidden**-0.5),
            proj_bias=None if shape.width is None else normal(width, scale=0.1),
        )
        hidden_states = normal(layers, 2 * images, shape.hidden)
        seeds = torch.randint(0, 2**40, (images,), device="cuda")
        found.append(Case(hidden_states, head, seeds, torch.tensor([7], device="cuda")))
    return found


def run(case: Case, backend: str) -> EarlyExit:
    """One call as a user makes it."""
    return early_exit(case.hidden_states, case.head, Decoding(), case.seeds, case.position, backend)


def batched_stage(case: Case) -> torch.Tensor:
    """The torch backend without its checks, which torch.compile takes whole."""
    found = batched.early_exit_scores(case.hidden_states, case.head, Decoding())
    return gumbel_max(found.scores, 1.0, case.seeds, case.position)


def backends(cases: list[Case], candidates: int) -> Iterator[tuple[str, Timing]]:
    """Times of each backend on the same cases."""
    yield "triton", graphed(_calls(cases, lambda case: run(case, "triton")))
    yield "triton, eager", eager(_calls(cases, lambda case: run(case, "triton")))
    yield "torch", graphed(_calls(cases, batched_stage))
    yield "torch, eager", eager(_calls(cases, lambda case: run(case, "torch")))
    if candidates == COMPILED_CANDIDATES:
        torch.compiler.reset()
        compiled = torch.compile(batched_stage, fullgraph=True)
        yield "torch, compiled", graphed(_calls(cases, compiled))
    yield "reference, eager", eager(_calls(cases, lambda case: run(case, "reference")))


def kernels(cases: list[Case]) -> Iterator[tuple[str, Timing]]:
    """Times of the three launches of the triton backend alone."""
    decoding = Decoding()
    arrived = [torch.zeros_like(case.seeds, dtype=torch.int32) for case in cases]
    folded = [project(case.hidden_states, case.head, 5.0, zeros) for case, zeros in zip(cases, arrived, strict=True)]
    logits = [codebook(x, case.head) for x, case in zip(folded, cases, strict=True)]
    both = list(zip(cases, arrived, folded, logits, strict=True))
    yield "project", graphed([lambda c=c, a=a: project(c.hidden_states, c.head, 5.0, a) for c, a, _, _ in both])
    yield "codebook", graphed([lambda c=c, x=x: codebook(x, c.head) for c, _, x, _ in both])

    def count_and_sweep(case: Case, zeros: torch.Tensor, parts: tuple) -> None:
        zeros.zero_()
        sweep(*parts, zeros, decoding, case.seeds, case.position, False)

    yield (
        "sweep, with setting its counters to 0",
        graphed([lambda c=c, a=a, z=z: count_and_sweep(c, a, z) for c, a, _, z in both]),
    )


def _calls(cases: list[Case], call: Callable[[Case], object]) -> list[Callable[[], object]]:
    return [lambda case=case: call(case) for case in cases]


def measure(names: list[str], bandwidth: float, rate: float) -> list[dict]:
    """All rows of the table: each shape, number of images and of candidates.

    Args:
        names: shapes of `floor.SHAPES`.
        bandwidth, rate: of the GPU, measured: bytes and operations a second.
    """
    rows = []
    for name in names:
        for images in IMAGES:
            for candidates in CANDIDATES:
                layers = candidates + 1
                work = floor.head_stage(floor.SHAPES[name], layers, images, torch.bfloat16)
                cases = random_cases(floor.SHAPES[name], layers, images, torch.bfloat16)
                timed = dict(backends(cases, candidates))
                if candidates == COMPILED_CANDIDATES:
                    timed |= dict(kernels(cases))
                rows.append(
                    {
                        "shape": name,
                        "images": images,
                        "candidates": candidates,
                        "floor_seconds": work.seconds(bandwidth, rate),
                        "seconds": {backend: asdict(timing) for backend, timing in timed.items()},
                    }
                )
    return rows
