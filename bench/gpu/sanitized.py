"""The shortest checks of the kernels with Triton's sanitizer of concurrency (ConSan) compiled in.

    python -m bench.gpu.sanitized # a part of `make gpu-check`, stage `rest`

It watches copies into shared memory that run beside the program: what reads a tile before it has arrived, or writes over
one that is still read, ends the kernel with an error. Of Triton's other instrumentations FpSan computes with other numbers,
which have no accuracy to check.
"""

import sys

import pytest
import torch
import triton
import typer

from bench import ROOT

MODE = "consan"
TESTS = ("test_head_stage[1B-as in a model]", "test_blocks[1B-1-1]")


def available() -> bool:
    """Says whether this Triton has the sanitizer."""
    return hasattr(triton.knobs.compilation, "instrumentation_mode")


def main() -> None:
    """Run the checks instrumented; the last line says what came of it."""
    if not available():
        print(f"SUMMARY: not measured: triton {triton.__version__} has no {MODE}")
        return
    from triton.runtime import _allocation

    def zeros(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int8, device="cuda")

    triton.knobs.compilation.instrumentation_mode = MODE
    triton.set_allocator(zeros)
    _allocation.set_profile_allocator(zeros)
    file = ROOT / "tests" / "kernels" / "test_quick_on_gpu.py"
    status = pytest.main(["-q", "--tb=short", *(f"{file}::{name}" for name in TESTS)])
    print(f"SUMMARY: {len(TESTS)} tests with {MODE}, {'passed' if status == 0 else 'not passed'}")
    sys.exit(int(status))


if __name__ == "__main__":
    typer.run(main)
