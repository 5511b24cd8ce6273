"""What the compilers make of the fused kernels, for GPUs that are not at hand.

    python bench/static_report.py            # writes bench/results/static_report.json and .md (`make static-report`)

Compiles every kernel in every configuration of the launch table for each GPU generation, and reads off the result:
registers, spills, shared memory, the matrix instruction, how wide weights are loaded, and the bytes that the launch asks for
against the fewest that the case needs.
"""

import inspect
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import floor
import torch
import triton
import typer
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from janus_dola.kernels import codebook, project, sweep
from janus_dola.kernels.launch import TABLE

RESULTS = Path(__file__).parent / "results"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_MEMORY = {"sm_80": 166912, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # bytes a block
MATRIX_INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma.sync": r"mma\.sync",
    "mfma": r"v_mfma_",
}
POINTERS = {
    "logits_ptr": "*fp32", "tile_max_ptr": "*fp32", "tile_sum_ptr": "*fp32", "part_ptr": "*fp32", "jsd_ptr": "*fp32",
    "scores_ptr": "*fp32", "seeds_ptr": "*i64", "position_ptr": "*i64", "code_ptr": "*i64", "layer_ptr": "*i64",
    "finite_ptr": "*i1", "arrived_ptr": "*i32",
}  # fmt: skip
FLOATS = ("eps", "cfg_weight", "temperature", "log_alpha")
ALIGNED_SIZES = ("D", "E", "V", "tiles")
SHAPE, LAYERS, IMAGES = floor.SHAPES["7B"], 5, 16


@dataclass(frozen=True)
class Case:
    """A kernel in one configuration for one GPU."""

    generation: str
    kernel: str
    what: str  # the configuration in words
    bits: int
    constants: dict[str, int]
    num_warps: int
    num_stages: int = 3
    requested: int | None = None  # bytes that the launch asks the memory system for
    needed: int | None = None  # the fewest
    aligned: bool = True  # whether all sizes are multiples of 16


def cases(generation: str, table: dict) -> list[Case]:
    """All configurations of one generation. Matrix products have the 7B shape and as many rows as the entry allows."""
    found = []
    for name in ("project", "codebook"):
        for entry in table[name]:
            pairs = entry["max_pairs"] or 128
            dtype = torch.bfloat16 if entry["bits"] == 16 else torch.float32
            outputs, inputs = (SHAPE.width, SHAPE.hidden) if name == "project" else (SHAPE.codes, SHAPE.width)
            columns = 2 * pairs if name == "project" else pairs
            work = (floor.project if name == "project" else floor.codebook)(SHAPE, 1, pairs, dtype)
            read = outputs * inputs * -(-pairs // entry["block_pairs"])
            read += columns * inputs * -(-outputs // entry["block_outputs"])
            written = work.bytes - (outputs * inputs + columns * inputs) * dtype.itemsize
            blocks = (entry["block_outputs"], entry["block_pairs"], entry["block_inputs"])
            letters = ("E", "PAIRS", "D") if name == "project" else ("V", "PAIRS", "E")
            constants = {f"BLOCK_{letter}": block for letter, block in zip(letters, blocks, strict=True)}
            constants |= {"GUIDED": True} if name == "project" else {"HAS_BIAS": True}
            limit = "any" if entry["max_pairs"] is None else f"<= {pairs}"
            what = f"{limit} pairs, " + (f"<= {entry['max_outputs']} outputs, " if entry["max_outputs"] else "")
            what += f"{blocks[0]} x {blocks[1]} x {blocks[2]}, {entry['num_warps']} warps, {entry['num_stages']} stages"
            found.append(
                Case(generation, name, what, entry["bits"], constants, entry["num_warps"], entry["num_stages"],
                     read * dtype.itemsize + written, work.bytes)
            )  # fmt: skip
    for guided in (True, False):
        found.append(
            Case(
                generation, "normalise", "guided" if guided else "unguided", 16, {"GUIDED": guided, "BLOCK_D": 2048}, 8
            )
        )
    launch = table["sweep"]
    parts = min(-(-SHAPE.codes // launch["block_codes"]), launch["max_parts"])
    modes = {"sampled": (4, False, False), "greedy": (4, True, False), "with scores": (4, True, True),
             "no contrast": (0, False, False), "15 candidates": (15, False, False)}  # fmt: skip
    for what, (candidates, greedy, scores) in modes.items():
        constants = {
            "NUM_LAYERS": candidates + 1, "FIRST": 0, "CANDIDATES": candidates, "PARTS": parts if candidates else 1,
            "BLOCK_V": launch["block_codes"], "GREEDY": greedy, "WRITE_SCORES": scores,
            "LAYERS_PADDED": triton.next_power_of_2(candidates + 1),
            "CANDIDATES_PADDED": triton.next_power_of_2(max(1, candidates)),
            "PARTS_PADDED": triton.next_power_of_2(parts if candidates else 1),
        }  # fmt: skip
        # Of the first pass every layer, of the second the final and the premature one
        requested = (candidates + 1 + 2) * IMAGES * SHAPE.codes * 4 if candidates else IMAGES * SHAPE.codes * 4
        needed = floor.sweep(SHAPE, candidates + 1, IMAGES).bytes
        found.append(
            Case(generation, "sweep", what, 32, constants, launch["num_warps"], requested=requested, needed=needed)
        )
    # Sizes that Triton compiles differently: 1, and those that are not multiples of 16
    for case in [found[0], next(case for case in found if case.kernel == "codebook"), *found[-7:-3]]:
        one = {"images": 1} if case.kernel != "codebook" else {"pairs": 1}
        found.append(replace(case, what=f"{case.what}, one image", constants=case.constants | one, requested=None))
        found.append(replace(case, what=f"{case.what}, odd sizes", aligned=False, requested=None))
    return found


KERNELS = {
    "project": project._project_kernel,
    "normalise": project._normalise_kernel,
    "codebook": codebook._codebook_kernel,
    "sweep": sweep._sweep_kernel,
}


def build(case: Case) -> dict:
    """Compiles a case and reads the result."""
    kernel = KERNELS[case.kernel]
    weights = "*bf16" if case.bits == 16 else "*fp32"
    multiplied = "*fp16" if case.bits == 16 else "*fp32"
    signature, aligned = {}, []
    for index, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, multiplied if name in ("x_ptr", "out_ptr") else weights)
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
        if name.endswith("_ptr") or (case.aligned and name in ALIGNED_SIZES):
            aligned.append(index)
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in case.constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=TARGETS[case.generation], options=options)
    assembly = compiled.asm["amdgcn"] if case.generation == "gfx942" else compiled.asm["ptx"]
    registers, spilled = resources(case.generation, compiled.asm)
    return {
        "generation": case.generation,
        "kernel": case.kernel,
        "bits": case.bits,
        "configuration": case.what,
        "aligned": case.aligned,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_memory": compiled.metadata.shared,
        "shared_memory_limit": SHARED_MEMORY[case.generation],
        "matrix_instruction": next((n for n, p in MATRIX_INSTRUCTIONS.items() if re.search(p, assembly)), None),
        "weight_load_bytes": weight_load_bytes(kernel, assembly),
        "requested_bytes": case.requested,
        "needed_bytes": case.needed,
    }


def resources(generation: str, asm: dict) -> tuple[int, int]:
    """Registers a thread and the bytes that did not fit into them."""
    if generation == "gfx942":
        used, spilled = (re.search(rf"\.vgpr_{key}:\s+(\d+)", asm["amdgcn"]) for key in ("count", "spill_count"))
        return int(used.group(1)), 4 * int(spilled.group(1))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    return int(registers), int(stack) + int(local)


def weight_load_bytes(kernel, assembly: str) -> int | None:
    """The narrowest load that stems from the line on which the kernel loads the weights of its matrix product."""
    lines, first = inspect.getsourcelines(kernel.fn)
    wanted = [first + i for i, line in enumerate(lines) if "tl.load(weight_rows" in line]
    if not wanted:
        return None
    widths, here = [], 0
    for line in assembly.splitlines():
        location = re.match(r"\s*\.loc\s+\d+\s+(\d+)", line)
        if location:
            here = int(location.group(1))
        elif here in wanted:
            widths += load_bytes(line)
    return min(widths)


def load_bytes(line: str) -> list[int]:
    """Bytes of a load from global memory, where the line is one."""
    if found := re.search(r"cp\.async\.\w+\.shared\.global[^;]*\], (0x\w+|\d+)", line):
        return [int(found.group(1), 0)]
    if found := re.search(r"ld\.global\S*?(?:\.v(\d))?\.[bfus](\d+)", line):
        return [int(found.group(1) or 1) * int(found.group(2)) // 8]
    if found := re.search(r"(?:global|buffer)_load_(dwordx\d|dword|ushort|ubyte|short\w*)", line):
        name = found.group(1)
        return [4 * int(name[-1])] if name.startswith("dwordx") else [{"dword": 4}.get(name, 2)]
    return []


def markdown(rows: list[dict]) -> str:
    """The report as tables, one a generation."""
    text = [
        "# What the compilers make of the fused kernels", "",
        "Made by `make static-report`; nothing here was run on a GPU. Matrix products have the shape of Janus-Pro-7B and",
        f"the most rows that the entry is for; the sweep looks at {IMAGES} images of {SHAPE.codes} codes.",
        "*asked / needed*: bytes that the launch requests, from cache or memory, over the fewest the case can do with.", "",
        f"triton {triton.__version__}, {len(rows)} configurations.",
    ]  # fmt: skip
    for generation in TARGETS:
        text += ["", f"## {generation}", ""]
        text += [
            "| kernel | bits | configuration | registers | spills | shared memory | matrix instruction | weight loads "
            "| asked / needed |",
            "|" + "---|" * 9,
        ]
        for row in rows:
            if row["generation"] != generation:
                continue
            cells = [
                row["kernel"],
                row["bits"],
                row["configuration"],
                row["registers"],
                row["spilled_bytes"],
                f"{row['shared_memory'] / 1024:.0f} of {row['shared_memory_limit'] / 1024:.0f} KiB",
                row["matrix_instruction"] or "",
                f"{row['weight_load_bytes']} bytes" if row["weight_load_bytes"] else "",
                f"{row['requested_bytes'] / row['needed_bytes']:.2f}" if row["requested_bytes"] else "",
            ]
            text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def main(outdir: Annotated[Path, typer.Option(help="Where the report goes.")] = RESULTS) -> None:
    """Compile every kernel for every GPU generation and report on the result."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    todo = [case for generation in TARGETS for case in cases(generation, table[generation])]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(tqdm(pool.map(build, todo), total=len(todo), unit="kernel"))
    outdir.mkdir(parents=True, exist_ok=True)
    (outdir / "static_report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (outdir / "static_report.md").write_text(markdown(rows), encoding="utf-8")
    print(f"{len(rows)} configurations: {outdir / 'static_report.md'}")


if __name__ == "__main__":
    typer.run(main)
