"""All Triton compilations of a quick check, known beforehand and made by all processors at once.

    python -m bench.gpu.compiling # `make gpu-check` begins with it

Launches are recorded on tensors without a device, where nothing runs: what a kernel is given decides what is compiled. The
compiled kernels lie in Triton's cache on disk, where the checks find them.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from multiprocessing import get_context

import torch
import triton
import typer
from torch import Tensor
from triton.runtime.jit import JITFunction, MockTensor

from bench.speed import floor
from janus_dola.kernels import block_fused, launch
from janus_dola.kernels.block import BlockWeights, Matrix, Norm, PassStart, Rotary
from janus_dola.kernels.codebook import codebook
from janus_dola.kernels.normalise import normalise
from janus_dola.kernels.project import project
from janus_dola.kernels.sweep import scores, sweep
from janus_dola.kernels.types import Decoding, Head

SHAPES = ("1B", "7B")
IMAGES, WINDOWS, LAYERS, CAPACITY = (1, 4, 16), (1, 8), 5, 640
BUDGET = 60  # compilations of the quick set


@dataclass(frozen=True)
class Compilation:
    """A kernel and what it is compiled for; launches that differ in nothing else share it."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, object], ...]  # by name; the dtype of a tensor, or one number of the kind
    options: tuple[tuple[str, object], ...]


def of_launch(kernel: JITFunction, args: tuple, keywords: dict) -> Compilation:
    """What Triton would compile for a launch: it tells 1, multiples of 16 and other integers apart, and no floats."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | keywords
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    arguments = []
    for name in kernel.arg_names:
        value = given.pop(name)
        if isinstance(value, Tensor):
            value = value.dtype
        elif name not in constants and isinstance(value, float):
            value = 0.5
        elif name not in constants and type(value) is int:
            value = 1 if value == 1 else 16 if value % 16 == 0 else 3
        arguments.append((name, value))
    return Compilation(kernel.fn.__module__, kernel.fn.__name__, tuple(arguments), tuple(sorted(given.items())))


@contextmanager
def recorded(generation: str) -> Iterator[list[Compilation]]:
    """Launches made inside, on tensors of the device "meta", as a GPU of this generation would compile them."""
    found: list[Compilation] = []
    run, here = JITFunction.run, launch.generation_here
    JITFunction.run = lambda kernel, *args, grid, warmup, **keywords: found.append(of_launch(kernel, args, keywords))
    launch.generation_here = lambda device: generation
    try:
        yield found
    finally:
        JITFunction.run, launch.generation_here = run, here


def quick(generation: str) -> list[Compilation]:
    """Of the head stage and the blocks in bfloat16: 1B and 7B; 1, 4 and 16 images; one code and eight a pass."""
    with recorded(generation) as found:
        for name in SHAPES:
            hidden, width, codes = astuple(floor.SHAPES[name])
            head = Head(_empty(hidden), 1e-6, _empty(codes, width), _empty(codes), _empty(width, hidden), _empty(width))
            for images in IMAGES:
                for layers in (LAYERS, 1):
                    _head_stage(head, images, layers)
            for window in WINDOWS:
                _blocks(floor.BLOCKS[name], window)
    return list(dict.fromkeys(found))


def _head_stage(head: Head, images: int, layers: int) -> None:
    decodings = Decoding().repeated(images, _empty(1, dtype=torch.float32))
    arrived = _empty(images, dtype=torch.int32)
    seeds = _empty(images, dtype=torch.int64)
    normed = normalise(_empty(layers, 2 * images, len(head.norm_weight)), head, None, arrived)
    logits = codebook(project(normed, head, decodings.cfg_weight), head)
    drawn = sweep(*logits, arrived, decodings, seeds, seeds)
    if layers > 1:
        scores(*logits, drawn.layer, decodings)


def _blocks(shape: floor.BlockShape, window: int) -> None:
    """Two of them: the first has other sums of squares before it, and none follows the last."""
    hidden, heads, size = shape.hidden, shape.heads, shape.head_size
    weights = BlockWeights(
        Norm(_empty(hidden), 1e-6), Matrix(_empty(3 * hidden, hidden)), Matrix(_empty(hidden, hidden)),
        Norm(_empty(hidden), 1e-6), Matrix(_empty(2 * shape.inner, hidden)), Matrix(_empty(hidden, shape.inner)),
        heads, heads, size, size**-0.5,
    )  # fmt: skip
    rotary = Rotary(_empty(2048, size), _empty(2048, size))
    start = PassStart(_empty(2, dtype=torch.int64), rotary, CAPACITY)
    block_fused.run_blocks(_empty(2 * window, hidden), [weights] * 2, _empty(2, 2, CAPACITY, 2, heads, size), start, [])


def _empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*sizes, dtype=dtype, device="meta")


def compile_here(todo: Compilation) -> str:
    """Compiles for the GPU of this machine, as a launch would, and launches nothing."""
    kernel = getattr(sys.modules[todo.module], todo.kernel)
    values = [MockTensor(v) if isinstance(v, torch.dtype) else v for _, v in todo.arguments]
    kernel.warmup(*values, grid=(1,), **dict(todo.options))
    return todo.kernel


def main() -> None:
    """Compile what the quick check needs."""
    todo = quick(launch.generation_of(torch.device("cuda")))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        done = list(pool.map(compile_here, todo))
    print(f"{len(done)} kernels compiled with triton {triton.__version__}")


if __name__ == "__main__":
    typer.run(main)
