"""What the compilers make of the fused kernels, for GPUs that are not at hand.

    python -m bench.forecast.static_report # writes bench/results/static_report.json and .md (`make static-report`)

Compiles every kernel in every configuration of the launch table for each GPU generation, and reads off the result:
registers, spills, shared memory, the matrix instruction, how wide weights are loaded, the cycles of the loop, and the bytes
that the launch asks for against the fewest that the case needs.

With `--instrumented` every kernel for sm_90 is compiled with each of Triton's sanitizers as well, which takes minutes.
"""

import inspect
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import triton
import typer
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import RESULTS
from bench.forecast import cycles
from bench.speed import floor
from janus_dola.kernels.gpu import attention, block_matmul, codebook, matmul, normalise, project, sweep, truncate
from janus_dola.kernels.gpu.launch import TABLE

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
    "sums_ptr": "*fp32", "race_ptr": "*fp32", "winner_ptr": "*i32", "scores_ptr": "*fp32", "seeds_ptr": "*i64",
    "position_ptr": "*i64", "code_ptr": "*i64", "layer_ptr": "*i64", "finite_ptr": "*i1", "arrived_ptr": "*i32",
    "cfg_weight_ptr": "*fp32", "temperature_ptr": "*fp32", "log_alpha_ptr": "*fp32", "premature_ptr": "*i64",
    "mixed_ptr": "*fp32", "maximum_ptr": "*fp32", "total_ptr": "*fp32", "squares_ptr": "*fp32", "start_ptr": "*i64",
    "top_k_ptr": "*i64", "top_p_ptr": "*fp32",
}  # fmt: skip
FLOATS = ("eps", "scaling")
ALIGNED_SIZES = ("D", "E", "V", "tiles", "inputs_a_split", "stride", "K", "width", "positions", "capacity")
# Triton's sanitizers, of copies beside the program, numbers and alignment. GSan asks for a driver to compile.
SANITIZERS, SANITIZED = ("consan", "fpsan", "iisan"), "sm_90"
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
            found.append(matmul_case(generation, name, entry))
    for guided in (True, False):
        what = "guided" if guided else "unguided"
        found.append(Case(generation, "normalise", what, 16, {"GUIDED": guided, "BLOCK_D": SHAPE.hidden}, 8))
    for splits in sorted({entry["splits"] for entry in table["project"]}):
        constants = {"GUIDED": True, "SPLITS_PADDED": splits, "BLOCK_E": project._BLOCK_E}
        found.append(Case(generation, "activate", f"{splits} splits", 16, constants, 4))
    modes = {"4 candidates": 4, "final layer alone": 0, "15 candidates": 15}
    for what, candidates in modes.items():
        # Every layer, once
        bytes_of = floor.sweep(SHAPE, candidates + 1, IMAGES).bytes
        case = sweep_case(generation, table["sweep"], what, candidates)
        found.append(replace(case, requested=bytes_of, needed=bytes_of))
    constants = {"FINAL": LAYERS - 1, "BLOCK_V": table["sweep"]["block_codes"]}
    found.append(Case(generation, "scores", "4 candidates", 32, constants, table["sweep"]["num_warps"]))
    # Of images that truncate; F goes through the sweep again, as logits of the final layer alone
    options = truncate.launch_options(SHAPE.codes)
    warps = options.pop("num_warps")
    found.append(Case(generation, "truncate", "top-k and top-p", 32, options, warps))
    # Sizes that Triton compiles differently: 1, and those that are not multiples of 16
    for kernel in ("project", "codebook", "normalise", "activate", "sweep"):
        case = next(case for case in found if case.kernel == kernel)
        one = {"project": "rows", "codebook": "pairs"}.get(kernel, "images")
        found.append(replace(case, what=f"{case.what}, {one} = 1", constants=case.constants | {one: 1}, requested=None))
        found.append(replace(case, what=f"{case.what}, odd sizes", aligned=False, requested=None))
    return found + [case for blocks in floor.BLOCKS.values() for case in block_cases(generation, blocks)]


def block_cases(generation: str, shape: floor.BlockShape, window: int = 1) -> list[Case]:
    """The kernels of a block, in the order in which they are launched (`gate` stands beside the library's products)."""
    hidden, heads, size, inner = shape.hidden, shape.heads, shape.head_size, shape.inner
    attending = {"WINDOW": window, "SIZE": size, "BLOCK_SIZE": size, "CHUNK": attention.CHUNK}
    queries = {"HEADS": heads, "GROUPS": 1, "BLOCK_QUERIES": max(16, triton.next_power_of_2(window))}

    def product(kernel: str, what: str, outputs: int, constants: dict) -> Case:
        options = block_matmul.launch_options(outputs, 16, generation)
        warps, stages = options.pop("num_warps"), options.pop("num_stages")
        what = f"{what}, {options['BLOCK_O']} x {options['BLOCK_ROWS']} x {options['BLOCK_D']}, {stages} stages"
        return Case(generation, kernel, what, 16, constants | options, warps, stages)

    tiles = triton.cdiv(hidden, block_matmul.launch_options(hidden, 16, generation)["BLOCK_O"])
    normed = {"HAS_BIAS": False, "TILES_PADDED": triton.next_power_of_2(tiles)}
    added = {"HAS_BIAS": False, "HAS_NORM": True}
    return [
        product("normed", f"qkv, {shape.name}", 3 * hidden, normed | {"GATED": False}),
        Case(generation, "attention", f"window {window}, {heads} heads", 16, attending | queries, 4),
        Case(generation, "combine", f"window {window}, 16 chunks", 16, attending | {"CHUNKS_PADDED": 16}, 4),
        product("added", f"output, {shape.name}", hidden, added),
        product("normed", f"gate and up, {shape.name}", 2 * inner, normed | {"GATED": True}),
        product("added", f"down, {shape.name}", hidden, added),
        Case(generation, "gate", shape.name, 16, {"BLOCK_I": 1024}, 4),
        Case(generation, "weigh", shape.name, 16, {"BLOCK_D": triton.next_power_of_2(hidden)}, 8),
    ]


def matmul_case(generation: str, kernel: str, entry: dict) -> Case:
    """A matrix product of the 7B shape with as many columns as the entry allows."""
    most = entry["max_columns"] or (320 if kernel == "project" else 160)
    columns = max(1, most // 2) * 2
    dtype = torch.bfloat16 if entry["bits"] == 16 else torch.float32
    outputs, inputs = (SHAPE.width, SHAPE.hidden) if kernel == "project" else (SHAPE.codes, SHAPE.width)
    of_codes = kernel == "codebook"
    work = floor.codebook(SHAPE, 1, columns, dtype) if of_codes else floor.project(SHAPE, 1, columns // 2, dtype)
    read = outputs * inputs * -(-columns // entry["block_columns"])
    read += columns * inputs * -(-outputs // entry["block_outputs"])
    written = columns * outputs * 4 * entry.get("splits", 1)
    blocks = (entry["block_outputs"], entry["block_columns"], entry["block_inputs"])
    letters = ("E", "ROWS", "D") if kernel == "project" else ("V", "PAIRS", "E")
    constants = {f"BLOCK_{letter}": block for letter, block in zip(letters, blocks, strict=True)}
    constants |= {} if kernel == "project" else {"HAS_BIAS": True}
    what = "any columns, " if entry["max_columns"] is None else f"<= {most} columns, "
    what += f"<= {entry['max_outputs']} outputs, " if entry["max_outputs"] else ""
    what += f"{blocks[0]} x {blocks[1]} x {blocks[2]}, {entry['num_warps']} warps, {entry['num_stages']} stages"
    what += f", {entry['splits']} splits" if entry.get("splits", 1) > 1 else ""
    return Case(generation, kernel, what, entry["bits"], constants, entry["num_warps"], entry["num_stages"],
                read * dtype.itemsize + written, work.bytes)  # fmt: skip


def sweep_case(generation: str, launch: dict, what: str, candidates: int) -> Case:
    """The sweep over so many candidates of the 7B shape."""
    image_model, races = min(-(-SHAPE.codes // launch["block_codes"]), launch["max_parts"]), max(1, candidates)
    constants = {
        "CANDIDATES": candidates, "PARTS": image_model, "BLOCK_V": launch["block_codes"],
        "RACES_PADDED": triton.next_power_of_2(races), "PARTS_PADDED": triton.next_power_of_2(image_model),
    }  # fmt: skip
    return Case(generation, "sweep", what, 32, constants, launch["num_warps"])


KERNELS = {
    "project": project._project_kernel,
    "activate": project._activate_kernel,
    "normalise": normalise._normalise_kernel,
    "codebook": codebook._codebook_kernel,
    "sweep": sweep._sweep_kernel,
    "scores": sweep._scores_kernel,
    "truncate": truncate._truncate_kernel,
    "normed": block_matmul._normed_kernel,
    "attention": attention._attention_kernel,
    "combine": attention._combine_kernel,
    "added": block_matmul._added_kernel,
    "gate": block_matmul._gate_kernel,
    "weigh": block_matmul._weigh_kernel,
}
PRODUCTS = ("project", "codebook", "normed", "added")


def compiled(case: Case, sanitizer: str | None = None) -> triton.compiler.CompiledKernel:
    """Compiles a case, as a launch with such arguments would; with a sanitizer in it, if one is named."""
    kernel = KERNELS[case.kernel]
    weights = "*bf16" if case.bits == 16 else "*fp32"
    of_head = case.kernel in ("project", "activate", "normalise", "codebook")  # multiplies in float16
    multiplied = "*fp16" if case.bits == 16 and of_head else weights
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
    options |= {"instrumentation_mode": sanitizer} if sanitizer else {}
    return triton.compile(source, target=TARGETS[case.generation], options=options)


def instrumented(case: Case) -> dict[str, str]:
    """Whether a case compiles with each sanitizer: "compiles", or what the compiler said."""
    found = {}
    for sanitizer in SANITIZERS:
        try:
            compiled(case, sanitizer)
            found[sanitizer] = "compiles"
        except Exception as error:  # whatever it is, the report says it
            found[sanitizer] = f"{type(error).__name__}: {error}"
    return found


def build(case: Case, with_sanitizers: bool = False) -> dict:
    """Compiles a case and reads the result."""
    found = compiled(case)
    assembly = found.asm["amdgcn"] if case.generation == "gfx942" else found.asm["ptx"]
    registers, spilled = resources(case.generation, found.asm)
    bodies = cycles.loops(machine_code(found.asm)) if case.generation != "gfx942" else []
    return {
        "generation": case.generation,
        "kernel": case.kernel,
        "bits": case.bits,
        "configuration": case.what,
        "aligned": case.aligned,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_memory": found.metadata.shared,
        "shared_memory_limit": SHARED_MEMORY[case.generation],
        "matrix_instruction": next((n for n, p in MATRIX_INSTRUCTIONS.items() if re.search(p, assembly)), None),
        "weight_load_bytes": weight_load_bytes(assembly) if case.kernel in PRODUCTS else None,
        "loop_cycles": max(map(cycles.warp_cycles, bodies), default=None),
        "counts_in_order": counts_in_order(found.asm["ptx"]) if case.kernel == "sweep" and "ptx" in found.asm else None,
        "requested_bytes": case.requested,
        "needed_bytes": case.needed,
    } | ({"instrumented": instrumented(case)} if with_sanitizers and case.generation == SANITIZED else {})


def resources(generation: str, asm: dict) -> tuple[int, int]:
    """Registers a thread and the bytes that did not fit into them."""
    if generation == "gfx942":
        used, spilled = (re.search(rf"\.vgpr_{key}:\s+(\d+)", asm["amdgcn"]) for key in ("count", "spill_count"))
        return int(used.group(1)), 4 * int(spilled.group(1))
    usage = cuobjdump(asm, "--dump-resource-usage")
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    return int(registers), int(stack) + int(local)


def cuobjdump(asm: dict, option: str) -> str:
    """What NVIDIA's tool says of a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, option, str(cubin)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def machine_code(asm: dict) -> list[cycles.Instruction]:
    """A kernel for an NVIDIA GPU, instruction by instruction."""
    return cycles.instructions(cuobjdump(asm, "-sass"))


def weight_load_bytes(assembly: str) -> int:
    """The narrowest load that stems from the line on which the weights of a matrix product are loaded."""
    lines, first = inspect.getsourcelines(matmul.product.fn)
    wanted = [first + i for i, line in enumerate(lines) if "tl.load(weight_rows" in line]
    widths, here = [], 0
    for line in assembly.splitlines():
        location = re.match(r"\s*\.loc\s+\d+\s+(\d+)", line)
        if location:
            here = int(location.group(1))
        elif here in wanted:
            widths += load_bytes(line)
    return min(widths)


def counts_in_order(ptx: str) -> bool:
    """Whether what the sweep's programs leave for the last one is stored before they count themselves, and read after.

    Stores, a barrier, one thread that counts (releasing and acquiring), a barrier, loads past the first-level cache.
    """
    kinds = {"s": r"st\.global", "b": r"bar\.sync", "c": r"@%p\d+ atom\.global\.gpu\.acq_rel", "a": r"atom\.",
             "l": r"ld\.global\.cg"}  # fmt: skip
    pattern = "|".join(f"(?P<{name}>{kind})" for name, kind in kinds.items())
    order = "".join(found.lastgroup or "" for found in re.finditer(pattern, ptx))
    return re.fullmatch(r"[^cal]*sb+cb+[sb]*l[sbl]*", order) is not None


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
        "*asked / needed*: bytes that the launch requests, from cache or memory, over the fewest the case can do with.",
        "*loop*: cycles of one turn of the longest loop for a warp alone, by `bench/forecast/cycles.py`.", "",
        f"triton {triton.__version__}, {len(rows)} configurations.",
    ]  # fmt: skip
    for generation in TARGETS:
        text += ["", f"## {generation}", ""]
        text += [
            "| kernel | bits | configuration | registers | spills | shared memory | matrix instruction | weight loads "
            "| loop | asked / needed |",
            "|" + "---|" * 10,
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
                row["loop_cycles"] or "",
                f"{row['requested_bytes'] / row['needed_bytes']:.2f}" if row["requested_bytes"] else "",
            ]
            text.append("| " + " | ".join(map(str, cells)) + " |")
    checked = [row for row in rows if "instrumented" in row]
    if checked:
        text += ["", f"## Compiled with Triton's sanitizers, {SANITIZED}", ""]
        for sanitizer in SANITIZERS:
            said = [row["instrumented"][sanitizer] for row in checked]
            text.append(f"- {sanitizer}: {said.count('compiles')} of {len(said)} configurations compile")
            bad = [row for row in checked if row["instrumented"][sanitizer] != "compiles"]
            text += [f"  - {r['kernel']}, {r['configuration']}: {r['instrumented'][sanitizer]}" for r in bad]
    return "\n".join(text) + "\n"


def main(
    outdir: Annotated[Path, typer.Option(help="Where the report goes.")] = RESULTS,
    with_sanitizers: Annotated[
        bool, typer.Option("--instrumented", help="With Triton's sanitizers as well; takes minutes.")
    ] = False,
) -> None:
    """Compile every kernel for every GPU generation and report on the result."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    todo = [case for generation in TARGETS for case in cases(generation, table[generation])]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(
            tqdm(pool.map(partial(build, with_sanitizers=with_sanitizers), todo), total=len(todo), unit="kernel")
        )
    outdir.mkdir(parents=True, exist_ok=True)
    (outdir / "static_report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (outdir / "static_report.md").write_text(markdown(rows), encoding="utf-8")
    print(f"{len(rows)} configurations: {outdir / 'static_report.md'}")


if __name__ == "__main__":
    typer.run(main)
