"""Makes all Triton compilations of the stage `correct` beforehand, by all processors at once.

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
from janus_dola.kernels import block_triton
from janus_dola.kernels.block_torch import Beside, BlockWeights, Matrix, Norm, PassStart, Rotary
from janus_dola.kernels.gpu import launch
from janus_dola.kernels.gpu.codebook import codebook
from janus_dola.kernels.gpu.normalise import normalise
from janus_dola.kernels.gpu.project import project
from janus_dola.kernels.gpu.sweep import as_single_layer_logits, scores, sweep
from janus_dola.kernels.gpu.truncate import truncate
from janus_dola.kernels.types import Head, SamplingTensors
from janus_dola.settings import DrawSettings

SHAPES = ("1B", "7B")
MINI = floor.BlockShape("mini", 192, 8, 6, 512)
# Of the mini model in the tests of the engines: slots and codes per pass, layers that are read, positions looked at.
MINI_PASSES = ((1, 1), (6, 1), (16, 1), (4, 1), (4, 8), (8, 1), (8, 2), (8, 4), (8, 8), (8, 16), (8, 32))
MINI_LAYERS, MINI_VISIBLE = (4, 1), (64, 128)
IMAGES, WINDOWS, LAYERS, CAPACITY = (1, 4, 16), (1, 8), 5, 640
TRUNCATED = 4  # images drawn with top-k and top-p


@dataclass(frozen=True)
class Compilation:
    """A kernel and what it is compiled for; launches that differ in nothing else share it."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, object], ...]  # by name; the dtype of a tensor, or one number of the kind
    options: tuple[tuple[str, object], ...]


def of_launch(kernel: JITFunction, args: tuple, keywords: dict) -> Compilation:
    """Returns what Triton would compile for a launch, which depends on integers: 1, multiples of 16, or others."""
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
    launches: list[Compilation] = []
    run, here = JITFunction.run, launch.generation_here
    JITFunction.run = lambda kernel, *args, grid, warmup, **keywords: launches.append(of_launch(kernel, args, keywords))
    launch.generation_here = lambda device: generation
    try:
        yield launches
    finally:
        JITFunction.run, launch.generation_here = run, here


def quick(generation: str) -> list[Compilation]:
    """Lists what head stage and blocks need in bfloat16: 1B and 7B; 1, 4 and 16 images; 1 and 8 codes per pass."""
    with recorded(generation) as launches:
        for name in SHAPES:
            hidden, width, codes = astuple(floor.SHAPES[name])
            head = Head(_empty(hidden), 1e-6, _empty(codes, width), _empty(codes), _empty(width, hidden), _empty(width))
            for images in IMAGES:
                for layers in (LAYERS, 1):
                    _head_stage(head, images, layers, truncates=images == TRUNCATED)
            for window in WINDOWS:
                _blocks(floor.BLOCKS[name], 1, window, CAPACITY)
    return list(dict.fromkeys(launches))


def engines(generation: str) -> list[Compilation]:
    """Lists what the mini model needs in float32, with which the tests of the engine draw: all their passes."""
    hidden, width, codes = astuple(floor.SHAPES["mini"])
    weights = (
        _empty(*size, dtype=torch.float32) for size in ((hidden,), (codes, width), (codes,), (width, hidden), (width,))
    )
    norm, *matrices = weights
    head = Head(norm, 1e-6, *matrices)
    with recorded(generation) as launches:
        for slots, window in MINI_PASSES:
            for layers in MINI_LAYERS:
                _head_stage(head, slots * window, layers)
            for visible in MINI_VISIBLE:
                _blocks(MINI, slots, window, visible, torch.float32)
    return list(dict.fromkeys(launches))


def _head_stage(head: Head, images: int, layers: int, truncates: bool = False) -> None:
    sampling = SamplingTensors.repeat(DrawSettings().sampling_params(()), images, _empty(1, dtype=torch.float32))
    seeds = _empty(images, dtype=torch.int64)
    hidden_states = _empty(layers, 2 * images, len(head.norm_weight), dtype=head.norm_weight.dtype)
    normed = normalise(hidden_states, head, None)
    logits = codebook(project(normed, head, sampling.cfg_weight), head)
    drawn = sweep(*logits, sampling, seeds, seeds)
    if layers > 1 or head.norm_weight.dtype == torch.float32:
        contrasted = scores(*logits, drawn.layer, sampling)
        if truncates:
            few = DrawSettings(top_k=1).sampling_params(())
            truncating = SamplingTensors.repeat(few, images, _empty(1, dtype=torch.float32))
            truncate(contrasted, truncating)
            sweep(*as_single_layer_logits(contrasted), truncating, seeds, seeds)


def _blocks(
    shape: floor.BlockShape, slots: int, window: int, visible: int, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Launches two blocks: the first has other sums of squares before it, and none follows the last."""
    hidden, heads, size, rows = shape.hidden, shape.heads, shape.head_size, 2 * slots

    def new(*sizes: int) -> Tensor:
        return _empty(*sizes, dtype=dtype)

    def beside(number: int, outputs: int) -> Beside:
        return Beside(tuple(Matrix(new(outputs, hidden)) for _ in range(number)))

    weights = BlockWeights(
        Norm(new(hidden), 1e-6), beside(3, hidden), Matrix(new(hidden, hidden)),
        Norm(new(hidden), 1e-6), beside(2, shape.inner), Matrix(new(hidden, shape.inner)),
        heads, heads, size, size**-0.5,
    )  # fmt: skip
    start = PassStart(_empty(rows, dtype=torch.int64), Rotary(new(2048, size), new(2048, size)), visible)
    keys_values = new(2, rows, max(visible, CAPACITY), 2, heads, size)
    block_triton.run_blocks(new(rows * window, hidden), [weights] * 2, keys_values, start, [])


def _empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*sizes, dtype=dtype, device="meta")


def compile_here(todo: Compilation) -> str:
    """Compiles for the GPU of this machine, as a launch would, and launches nothing."""
    kernel = getattr(sys.modules[todo.module], todo.kernel)
    values = [MockTensor(v) if isinstance(v, torch.dtype) else v for _, v in todo.arguments]
    kernel.warmup(*values, grid=(1,), **dict(todo.options))
    return todo.kernel


def main() -> None:
    """Compile what the stage `correct` needs: the quick set first."""
    generation = launch.generation_of(torch.device("cuda"))
    todo = list(dict.fromkeys(quick(generation) + engines(generation)))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        done = list(pool.map(compile_here, todo))
    print(f"{len(done)} kernels compiled with triton {triton.__version__}")


if __name__ == "__main__":
    typer.run(main)
