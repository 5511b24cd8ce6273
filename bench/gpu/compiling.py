"""Makes the Triton compilations of a stage of `make gpu-check` beforehand, by several processes at once.

    python -m bench.gpu.compiling correct # each stage with kernels begins with it

Launches are recorded on tensors without a device, where nothing runs: what a kernel is given decides what is compiled. The
compiled kernels lie in Triton's cache on disk, where the stage finds them.
"""

import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import torch
import triton
import typer
from torch import Tensor
from triton.runtime.jit import JITFunction, MockTensor

from bench.speed import floor, test_generation, test_head_stage, test_step
from janus_dola.arguments import WINDOWS
from janus_dola.cli.startup import processors
from janus_dola.engine.capacity import bucket_of, window_of
from janus_dola.engine.slots import Slots
from janus_dola.kernels import block_triton, head_triton
from janus_dola.kernels.block_torch import Beside, BlockWeights, Matrix, Norm, PassStart, Rotary
from janus_dola.kernels.gpu import launch
from janus_dola.kernels.types import Head, SampledCodes, SamplingParams, SamplingTensors
from janus_dola.models.model import Raster
from janus_dola.settings import DrawSettings

SHAPES = ("1B", "7B")
MINI = floor.BlockShape("mini", 192, 8, 6, 512)
# Of the mini model in the tests of the engines: slots and codes per pass, layers that are read, positions looked at.
MINI_PASSES = ((1, 1), (2, 8), (6, 1), (16, 1), (4, 1), (4, 8), *((8, window) for window in WINDOWS))
MINI_LAYERS, MINI_VISIBLE = (4, 1), (64, 128)
IMAGES, LAYERS, CAPACITY = (1, 4, 16), 5, 640
BLOCK_PASSES = ((1, 1), (1, 8), (1, 16), (1, 32), (33, 1), (13, 8))  # slots and windows of the blocks' test
# Shapes of the blocks' test; Emu3 has as many heads a head of keys as the last.
OF_BLOCKS = floor.BLOCKS | {"grouped heads": floor.BlockShape("grouped heads", 2048, 2, 16, 5632, groups=4)}
WIDE = (16, 2, 4, 1)  # slots of the 7B shape in the tests of the engine
WIDE_LAYERS, WIDE_WINDOWS, WIDE_VISIBLE = (4, 1), (1, 8), (64, 128)
PLAIN, TRUNCATED = (settings.sampling_params(()) for settings in (DrawSettings(), DrawSettings(top_k=50, top_p=0.9)))
UNGUIDED = replace(PLAIN, cfg_weight=None)
MOST_PROCESSES, BYTES_OF_A_PROCESS = 16, 1 << 30  # of the host's memory and of the GPU's: each has a context there


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
    any_number = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
    arguments = []
    for name in kernel.arg_names:
        value = given.pop(name)
        if isinstance(value, Tensor):
            value = value.dtype
        elif name not in constants and isinstance(value, float):
            value = 0.5
        elif name not in constants and type(value) is int:
            value = 3 if name in any_number else 1 if value == 1 else 16 if value % 16 == 0 else 3
        arguments.append((name, value))
    return Compilation(kernel.fn.__module__, kernel.fn.__name__, tuple(arguments), tuple(sorted(given.items())))


@contextmanager
def recorded(generation: str) -> Iterator[list[Compilation]]:
    """Launches made inside, on tensors of the device "meta", as a GPU of this generation would compile them."""
    launches: list[Compilation] = []
    run, here, operator = JITFunction.run, launch.generation_here, head_triton._sample_codes
    JITFunction.run = lambda kernel, *args, grid, warmup, **keywords: launches.append(of_launch(kernel, args, keywords))
    launch.generation_here = lambda device: generation
    head_triton._sample_codes = operator._init_fn  # what the operator does on a GPU
    try:
        yield launches
    finally:
        JITFunction.run, launch.generation_here, head_triton._sample_codes = run, here, operator


def of_correct() -> None:
    """Launches what the quick tests and those of the engines need."""
    for name in SHAPES:
        head = _head(floor.SHAPES[name])
        for images in IMAGES:
            _head_stage(head, images, LAYERS)
        _head_stage(head, 4, LAYERS, TRUNCATED)
    for shape in OF_BLOCKS.values():
        for slots, window in BLOCK_PASSES:
            _blocks(shape, slots, window, CAPACITY)
    mini = _head(floor.SHAPES["mini"], torch.float32)
    for slots, window in MINI_PASSES:
        for layers in MINI_LAYERS:
            _head_stage(mini, slots * window, layers)
        for visible in MINI_VISIBLE:
            _blocks(MINI, slots, window, visible, torch.float32)
    for images in (1, 2):
        _head_stage(mini, 8 * images, MINI_LAYERS[0], TRUNCATED)


def of_head() -> None:
    """Launches what the benchmarks of the head stage need."""
    for row in test_head_stage.CASES["cuda"].values():
        if row["backend"].startswith("triton"):
            shape, dtype = floor.SHAPES[row["shape"]], test_head_stage.DTYPES[row["dtype"]]
            _head_stage(_head(shape, dtype), row["images"], row["candidates"] + 1)


def of_step() -> None:
    """Launches what the benchmarks of a pass need."""
    for row in test_step.test_step.cases["cuda"].values():
        _pass(row["name"], row["images"], row["window"], row["way"])


def of_images() -> None:
    """Launches what the benchmarks of whole images need."""
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    for row in test_generation.test_image.cases["cuda"].values():
        if row["loop"].startswith("ours"):
            slots = bucket_of(row["images"])
            _pass(
                row["name"],
                slots,
                window_of(2 * slots, on_gpu) if row["window"] == "auto" else row["window"],
                row["way"],
            )


def of_tests() -> None:
    """Launches what all other tests on a GPU need."""
    from tests.kernels import test_head_triton_on_gpu as on_gpu

    for size in on_gpu.SIZES.values():
        for dtype in on_gpu.DTYPES:
            for count in IMAGES:
                for params in (PLAIN, UNGUIDED):
                    _head_stage(_head(floor.HeadShape(*size), dtype), count, LAYERS, params)
    for layers in on_gpu.LAYERS:
        for count in on_gpu.IMAGES:
            _head_stage(_head(floor.HeadShape(*on_gpu.SIZES["small"])), count, layers)
    for bias in (True, False):
        for params in (PLAIN, UNGUIDED):
            _head_stage(_head(floor.SHAPES["text 8B"], bias=bias), 1, 9, params)
    for slots in WIDE:
        for window in WIDE_WINDOWS:
            for layers in WIDE_LAYERS:
                _head_stage(_head(floor.SHAPES["7B"]), slots * window, layers)
            for visible in WIDE_VISIBLE:
                _blocks(floor.BLOCKS["7B"], slots, window, visible)


STAGES: dict[str, Callable[[], None]] = {
    "correct": of_correct, "head": of_head, "step": of_step, "images": of_images, "tests": of_tests,
}  # fmt: skip


def compilations(stage: str, generation: str) -> list[Compilation]:
    """Lists what a stage compiles on a GPU of this generation."""
    with recorded(generation) as launches:
        STAGES[stage]()
    return list(dict.fromkeys(launches))


def _pass(name: str, slots: int, window: int, way: str) -> None:
    """Launches a pass of a real shape, and the first codes of an image."""
    head, layers = _head(floor.SHAPES[name]), 1 if way == "baseline" else LAYERS
    for count in (slots * window, 1):
        _head_stage(head, count, layers)
    for visible in (64, CAPACITY):
        _blocks(floor.BLOCKS[name], slots, window, visible)


def _head(shape: floor.HeadShape, dtype: torch.dtype = torch.bfloat16, bias: bool = True) -> Head:
    hidden, width, codes = astuple(shape)

    def new(*sizes: int) -> Tensor:
        return _empty(*sizes, dtype=dtype)

    last = new(codes, width or hidden), new(codes) if bias else None
    return Head(new(hidden), 1e-6, *last, *(() if width is None else (new(width, hidden), new(width))))


def _head_stage(head: Head, images: int, layers: int, params: SamplingParams = PLAIN) -> None:
    """Launches the head stage as it draws, and as it returns scores."""
    rows = images if params.cfg_weight is None else 2 * images
    hidden_states = _empty(layers, rows, head.hidden_size, dtype=head.norm_weight.dtype)
    sampling = SamplingTensors.repeat(params, images, _empty(1, dtype=torch.float32))
    seeds = _empty(images, dtype=torch.int64)
    head_triton.sample_codes(hidden_states, head, sampling, seeds, seeds)
    head_triton.head_scores(hidden_states, head, sampling)


def _blocks(
    shape: floor.BlockShape,
    slots: int,
    window: int,
    visible: int,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Launches two blocks, and what feeds them and accepts codes.

    The first block has other sums of squares before it, and none follows the last.
    """
    hidden, heads, size, rows = shape.hidden, shape.heads, shape.head_size, 2 * slots
    keys = heads // shape.groups

    def new(*sizes: int) -> Tensor:
        return _empty(*sizes, dtype=dtype)

    def beside(*outputs: int, bias: bool = False) -> Beside:
        return Beside(tuple(Matrix(new(each, hidden), new(each) if bias else None) for each in outputs))

    norm = Norm(new(hidden), 1e-6)
    behind = norm if shape.glm else None
    weights = BlockWeights(
        norm, beside(hidden, shape.keys, shape.keys, bias=shape.glm), Matrix(new(hidden, hidden)),
        norm, beside(shape.inner, shape.inner), Matrix(new(hidden, shape.inner)),
        heads, keys, size, size**-0.5, shape.rotated, behind, behind,
    )  # fmt: skip
    rotary = Rotary(new(2048, shape.rotated), new(2048, shape.rotated), image=1000 if shape.glm else None)
    start = PassStart(_empty(rows, dtype=torch.int64), rotary, visible, _empty(rows, dtype=torch.int64))
    keys_values = new(2, rows, max(visible, CAPACITY), 2, keys, size)
    block_triton.run_blocks(new(rows * window, hidden), [weights] * 2, keys_values, start, [])
    number, jsd = _empty(slots * window, dtype=torch.int64), _empty(slots * window, dtype=torch.float32)
    around = Slots(
        slots, Raster(24, 24), window, number, SamplingTensors.repeat(PLAIN, slots * window, jsd), fused=True
    )
    around.feed(new(16384, hidden))
    around.accept(SampledCodes(number, number, jsd, number.bool(), jsd))


def _empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*sizes, dtype=dtype, device="meta")


def compile_here(todo: Compilation) -> str:
    """Compiles for the GPU of this machine, as a launch would, and launches nothing."""
    kernel = getattr(sys.modules[todo.module], todo.kernel)
    values = [MockTensor(v) if isinstance(v, torch.dtype) else v for _, v in todo.arguments]
    kernel.warmup(*values, grid=(1,), **dict(todo.options))
    return todo.kernel


def processes(free_on_gpu: int, free_on_host: int) -> int:
    """Returns how many processes compile at once: no more than there are processors and memory for, and 16 at most."""
    of_memory = min(free_on_gpu, free_on_host) // BYTES_OF_A_PROCESS
    return max(1, min(MOST_PROCESSES, processors(), of_memory))


def main(stage: Annotated[str, typer.Argument(help="Whose kernels.")]) -> None:
    """Compile what a stage needs."""
    todo = compilations(stage, launch.generation_of(torch.device("cuda")))
    available = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    workers = processes(torch.cuda.mem_get_info()[0], 1024 * int(available[1]) if available else sys.maxsize)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = list(pool.map(compile_here, todo))
    print(f"{len(done)} kernels compiled by {workers} processes with triton {triton.__version__}")


if __name__ == "__main__":
    typer.run(main)
