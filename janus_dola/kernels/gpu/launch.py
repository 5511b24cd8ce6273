"""Block shapes and pipelining of the kernels, by GPU generation and shape, read from `launch_table.json`.

Nothing is tuned while a model runs: results would depend on timing, and a CUDA graph cannot be captured meanwhile.
`make tune` measures on the GPU at hand and rewrites its part of the table.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
from torch import Tensor

# Under TRITON_INTERPRET=1 Triton runs kernels on the CPU in numpy: for tests.
INTERPRETED = bool(triton.knobs.runtime.interpret)
TABLE = Path(__file__).with_name("launch_table.json")


@dataclass(frozen=True)
class MatmulLaunch:
    """Tiles for the product weights [outputs, inputs] times activations [columns, inputs]."""

    block_outputs: int
    block_columns: int
    block_inputs: int
    num_warps: int
    num_stages: int
    splits: int = 1  # programs per tile, each with a part of the inputs


@dataclass(frozen=True)
class SweepLaunch:
    """Codes that a program looks at in one go, and the most programs per image."""

    block_codes: int
    max_parts: int
    num_warps: int


def generation_of(device: torch.device) -> str:
    """Names the part of the table for a GPU: "sm_80", "sm_89" (little shared memory), "sm_90", "sm_100" or "gfx942"."""
    if device.type == "cpu":  # the interpreter
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    capability = (properties.major, properties.minor)
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get(capability, "sm_89")


def unsupported(device: torch.device) -> str | None:
    """Says what a GPU lacks to run the kernels, or None."""
    if torch.version.hip:
        name = generation_of(device)
        return None if name in _table() else f"an AMD GPU of gfx942, got {name}"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"a GPU of compute capability 8.0 or higher, got {major}.{minor}"


@cache
def matmul_launch(kernel: str, generation: str, bits: int, columns: int, outputs: int) -> MatmulLaunch:
    """Returns the first entry of the table that the sizes fit into.

    Args:
        kernel: "project" or "codebook".
        generation: as `generation_of` says.
        bits: the weights' dtype, 16 or 32.
        columns, outputs: rows of activations (L * R for the projection, L * B for the codebook), and rows of weights.
    """
    for entry in _table()[generation][kernel]:
        fits_columns = entry["max_columns"] is None or columns <= entry["max_columns"]
        fits_outputs = entry["max_outputs"] is None or outputs <= entry["max_outputs"]
        if entry["bits"] == bits and fits_columns and fits_outputs:
            return MatmulLaunch(**{name: entry[name] for name in MatmulLaunch.__dataclass_fields__ if name in entry})
    raise LookupError(f"no {bits}-bit entry of {kernel} on {generation} fits {columns} columns and {outputs} outputs")


@cache
def sweep_launch(generation: str, images: int) -> SweepLaunch:
    """Returns the first entry of the sweep that a number of images fits into."""
    entry = next(each for each in _table()[generation]["sweep"] if images <= (each["max_images"] or images))
    return SweepLaunch(**{name: entry[name] for name in SweepLaunch.__dataclass_fields__})


def launch_of(kernel: str, activations: Tensor, columns: int, outputs: int) -> MatmulLaunch:
    """Returns `matmul_launch` for tensors on their device."""
    return matmul_launch(kernel, generation_here(activations.device), activations.element_size() * 8, columns, outputs)


def sweep_launch_of(logits: Tensor) -> SweepLaunch:
    """Returns `sweep_launch` for logits [L, B, V] on their device."""
    return sweep_launch(generation_here(logits.device), logits.shape[1])


generation_here = cache(generation_of)  # asked at every launch


@cache
def _table() -> dict:
    return json.loads(TABLE.read_text(encoding="utf-8"))
