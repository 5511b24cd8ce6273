"""Compiles the fused kernels for GPUs that are not at hand, and reads off the result.

A case is a kernel in one configuration of the launch table for one GPU generation. Of each the report has registers, spills,
shared memory, the matrix instruction and how wide weights are loaded.
"""

import inspect
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.forecast import cycles
from bench.report.tables import markdown as markdown_table
from bench.speed import floor
from janus_dola.kernels.gpu import (
    attention,
    block_matmul,
    block_rows,
    codebook,
    feeding,
    matmul,
    normalise,
    project,
    sweep,
    truncate,
)
from janus_dola.kernels.gpu.launch import MatmulLaunch, SweepLaunch, matmul_launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_MEMORY = {
    "sm_80": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "gfx942": 65536,
}  # bytes per block
MATRIX_INSTRUCTIONS = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma.sync": r"mma\.sync",
    "mfma": r"v_mfma_",
}
POINTERS = {
    "logits_ptr": "*fp32", "tile_max_ptr": "*fp32", "tile_sum_ptr": "*fp32", "jsd_ptr": "*fp32",
    "sums_ptr": "*fp32", "parts_ptr": "*fp32", "scores_ptr": "*fp32", "seeds_ptr": "*i64",
    "position_ptr": "*i64", "code_ptr": "*i64", "layer_ptr": "*i64", "finite_ptr": "*i1", "arrived_ptr": "*i32",
    "cfg_weight_ptr": "*fp32", "temperature_ptr": "*fp32", "log_alpha_ptr": "*fp32", "premature_ptr": "*i64",
    "final_weight_ptr": "*fp32", "premature_weight_ptr": "*fp32",
    "mixed_ptr": "*fp32", "maximum_ptr": "*fp32", "total_ptr": "*fp32", "squares_ptr": "*fp32", "start_ptr": "*i64",
    "top_k_ptr": "*i64", "top_p_ptr": "*fp32", "tokens_ptr": "*i64", "decided_ptr": "*i64", "prompt_tokens_ptr": "*i64",
    "fed_seeds_ptr": "*i64", "layers_ptr": "*i64", "jsds_ptr": "*fp32", "log_prob_ptr": "*fp32", "log_probs_ptr": "*fp32",
    "passes_ptr": "*i64", "sampled_finite_ptr": "*i1", "guesses_ptr": "*i64",
}  # fmt: skip
FLOATS = ("eps", "scaling")
NOT_GIVEN = {"prompt_tokens_ptr": None, "image": None}  # for tables that begin where each row begins
ALIGNED_SIZES = (
    "D", "E", "V", "tiles", "inputs_per_split", "stride", "K", "width", "positions", "capacity",
)  # fmt: skip
SHAPE, LAYERS, TILES = floor.SHAPES["7B"], 5, 128


@dataclass(frozen=True)
class Case:
    """A kernel in one configuration for one GPU."""

    generation: str
    kernel: str
    what: str  # the configuration in words
    bits: int
    constants: dict[str, int | None]
    num_warps: int
    num_stages: int = 3
    aligned: bool = True  # whether all sizes are multiples of 16


def cases(generation: str, table: dict) -> list[Case]:
    """Lists all configurations of one generation. Matrix products have the 7B shape."""
    listed = []
    for name in ("project", "codebook"):
        for entry in table[name]:
            listed.append(matmul_case(generation, name, entry))
    for guided in (True, False):
        what = "guided" if guided else "unguided"
        listed.append(Case(generation, "normalise", what, 16, {"GUIDED": guided, "BLOCK_D": SHAPE.hidden}, 8))
    modes = {"4 candidates": 4, "final layer alone": 0, "15 candidates": 15, "31 candidates": 31}
    for what, candidates in modes.items():
        listed += [sweep_case(generation, entry, what, candidates) for entry in table["sweep"]]
    for entry in table["sweep"]:
        constants = {"FINAL": LAYERS - 1, "BLOCK_V": entry["block_codes"], "TILES": TILES}
        listed.append(Case(generation, "scores", "4 candidates", 32, constants, entry["num_warps"]))
    # Images that truncate: F goes through the sweep again, as logits of the final layer alone
    options = truncate.launch_options(SHAPE.codes)
    warps = options.pop("num_warps")
    listed.append(Case(generation, "truncate", "top-k and top-p", 32, options, warps))
    # Around a pass; 576 positions without line ends, and Emu3's, which has them
    for window in (1, 8, 32):
        for line_end in (-1, 32768):
            constants = {"LINE_END": line_end, "WINDOW": window}
            what = f"window {window}" + (", line ends" if line_end >= 0 else "")
            listed.append(Case(generation, "feed", what, 16, constants | {"BLOCK_D": SHAPE.hidden}, 4))
            listed.append(Case(generation, "accept", what, 16, constants | {"PADDED": window}, 1))
    # Sizes that Triton compiles differently: 1, and those that are not multiples of 16
    for kernel in ("project", "codebook", "normalise", "sweep"):
        case = next(case for case in listed if case.kernel == kernel)
        one = "pairs" if kernel == "codebook" else "images"
        listed.append(replace(case, what=f"{case.what}, {one} = 1", constants=case.constants | {one: 1}))
        listed.append(replace(case, what=f"{case.what}, odd sizes", aligned=False))
    return listed + block_configurations(generation, table)


def block_configurations(generation: str, table: dict) -> list[Case]:
    """Lists what users can reach of the blocks: all tiles, windows of 1 to 32, 1 to 16 heads that share keys."""
    shape, glm = floor.BLOCKS["7B"], floor.BLOCKS["GLM-Image"]
    listed = [Case(generation, "weigh", shape.name, 16, {"BLOCK_D": shape.hidden, "COUNTERS": shape.hidden // 16}, 8)]
    for kernel, which in {"qkv": "qkv", "gate_up": "gate and up", "added": "output"}.items():
        for entry in table[kernel]:
            launch = MatmulLaunch(
                **{field: entry[field] for field in MatmulLaunch.__dataclass_fields__ if field in entry}
            )
            for each in (shape, glm) if which != "gate and up" else (shape,):
                listed.append(block_product(generation, each, which, launch, entry["bits"]))
    for bits in (16, 32):
        for window, groups in ((1, 1), (8, 1), (16, 4), (32, 1), (32, 8), (1, 16), (16, 16)):
            grouped = replace(shape, groups=groups)
            listed += attention_cases(generation, grouped, window, bits)[: 2 if groups == 1 else 1]
    return [*listed, norm_behind(generation, glm)]


def block_product(generation: str, shape: floor.BlockShape, which: str, launch: MatmulLaunch, bits: int = 16) -> Case:
    """Returns one of a block's products, "qkv", "output", "gate and up" or "down", by its tiles."""
    hidden, inner = shape.hidden, shape.inner
    kernel = {"qkv": "projected", "gate and up": "gated"}.get(which, "added")
    constants = {"BLOCK_O": launch.block_outputs, "BLOCK_ROWS": launch.block_columns, "BLOCK_D": launch.block_inputs}
    if kernel == "added":
        turns = triton.cdiv(inner if which == "down" else hidden, launch.block_inputs)
        splits = triton.cdiv(turns, triton.cdiv(turns, launch.splits))
        constants |= {"HAS_BIAS": False, "HAS_NORM": not shape.glm, "SPLITS": splits}
        constants |= {"residual_ptr": None} if shape.glm else {}
    else:
        tiles = triton.cdiv(hidden, 64)  # of `added`, at the most
        has_bias = shape.glm and kernel == "projected"
        constants |= {"HAS_BIAS": has_bias, "TILES_PADDED": triton.next_power_of_2(tiles)}
    if kernel == "projected":
        heads = {"HEADS": shape.heads // shape.groups, "GROUPS": shape.groups, "SIZE": shape.head_size}
        constants |= heads | {"ROTATED": shape.rotated} | ({} if shape.glm else NOT_GIVEN)
    what = f"{which}, {shape.name}, {launch.block_outputs} x {launch.block_columns} x {launch.block_inputs}"
    what += f", {launch.num_warps} warps, {launch.num_stages} stages"
    what += f", {launch.splits} splits" if launch.splits > 1 else ""
    return Case(generation, kernel, what, bits, constants, launch.num_warps, launch.num_stages)


def norm_behind(generation: str, shape: floor.BlockShape) -> Case:
    """Returns the launch that adds a product behind its norm."""
    return Case(generation, "add_normed", shape.name, 16, {"BLOCK_D": shape.hidden}, 8)


def attention_cases(generation: str, shape: floor.BlockShape, window: int, bits: int = 16) -> list[Case]:
    """Lists the two launches of attention."""
    groups, size = shape.groups, shape.head_size
    queries, most = window * groups, attention.MOST_QUERIES[bits // 8]
    block = min(max(16, triton.next_power_of_2(queries)), most)
    heads, chunk = shape.heads // groups, attention.CHUNK[bits // 8]
    constants = {"WINDOW": window, "SIZE": size, "BLOCK_SIZE": size, "CHUNK": chunk}
    blocks = {"HEADS": heads, "GROUPS": groups, "BLOCK_QUERIES": block, "QUERY_BLOCKS": triton.cdiv(queries, block)}
    what = f"window {window}, {heads} heads of {groups}"
    return [
        Case(generation, "attention", what, bits, constants | blocks, 4),
        Case(generation, "combine", what, bits, constants | {"CHUNKS_PADDED": 16}, 4),
    ]


def block_cases(generation: str, shape: floor.BlockShape, rows: int, window: int = 1) -> list[Case]:
    """Lists the launches of a block with so many rows of activations, in order, by the launch table."""
    hidden, inner = shape.hidden, shape.inner

    def case(which: str, kernel: str, outputs: int) -> Case:
        launch = matmul_launch(kernel, generation, 16, rows, outputs)
        return block_product(generation, shape, which, launch)

    behind = [norm_behind(generation, shape)] if shape.glm else []
    return [
        case("qkv", "qkv", hidden + 2 * shape.keys),
        *attention_cases(generation, shape, window),
        case("output", "added", hidden),
        *behind,
        case("gate and up", "gate_up", 2 * inner),
        case("down", "added", hidden),
        *behind,
    ]


def matmul_case(generation: str, kernel: str, entry: dict) -> Case:
    """Returns a matrix product by an entry of the launch table."""
    letters = ("E", "ROWS", "D") if kernel == "project" else ("V", "PAIRS", "E")
    blocks = (entry["block_outputs"], entry["block_columns"], entry["block_inputs"])
    constants = {f"BLOCK_{letter}": block for letter, block in zip(letters, blocks, strict=True)}
    if kernel == "project":
        launch = MatmulLaunch(**{name: entry[name] for name in MatmulLaunch.__dataclass_fields__})
        constants |= {"GUIDED": True, "SPLITS": entry["splits"], "PAIRS_AT_ONCE": project.pairs_at_once(launch)}
    else:
        constants["HAS_BIAS"] = True
    what = f"<= {entry['max_columns']} columns, " if entry["max_columns"] else "any columns, "
    what += f"<= {entry['max_outputs']} outputs, " if entry["max_outputs"] else ""
    what += f"{blocks[0]} x {blocks[1]} x {blocks[2]}, {entry['num_warps']} warps, {entry['num_stages']} stages"
    what += f", {entry['splits']} splits" if entry.get("splits", 1) > 1 else ""
    return Case(generation, kernel, what, entry["bits"], constants, entry["num_warps"], entry["num_stages"])


def sweep_case(generation: str, entry: dict, what: str, candidates: int) -> Case:
    """Returns the sweep over the candidates of the 7B shape, by an entry of the launch table."""
    launch = SweepLaunch(entry["block_codes"], entry["max_parts"], entry["num_warps"])
    constants = sweep.sweep_constants(SHAPE.codes, candidates, launch) | {"TILES": TILES}
    what += f", <= {entry['max_images']} images" if entry["max_images"] else ""
    return Case(generation, "sweep", what, 32, constants, entry["num_warps"])


KERNELS = {
    "project": project._project_kernel,
    "normalise": normalise._normalise_kernel,
    "codebook": codebook._codebook_kernel,
    "sweep": sweep._sweep_kernel,
    "scores": sweep._scores_kernel,
    "truncate": truncate._truncate_kernel,
    "feed": feeding._feed_kernel,
    "accept": feeding._accept_kernel,
    "projected": block_matmul._projected_kernel,
    "gated": block_matmul._gated_kernel,
    "attention": attention._attention_kernel,
    "combine": attention._combine_kernel,
    "added": block_matmul._added_kernel,
    "weigh": block_rows._weigh_kernel,
    "add_normed": block_rows._add_normed_kernel,
}
PRODUCTS = ("project", "codebook", "projected", "gated", "added")


def compiled(case: Case) -> triton.compiler.CompiledKernel:
    """Compiles a case, as a launch with such arguments would."""
    kernel = KERNELS[case.kernel]
    weights = "*bf16" if case.bits == 16 else "*fp32"
    of_head = case.kernel in ("project", "normalise", "codebook")  # multiplies in float16
    multiplied = "*fp16" if case.bits == 16 and of_head else weights
    signature, aligned = {}, []
    for index, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, multiplied if name in ("x_ptr", "out_ptr") else weights)
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
        if signature[name].startswith("*") or (case.aligned and name in ALIGNED_SIZES):
            aligned.append(index)
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in case.constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=TARGETS[case.generation], options=options)


def build(case: Case) -> dict:
    """Compiles a case and reads the result."""
    kernel = compiled(case)
    assembly = kernel.asm["amdgcn"] if case.generation == "gfx942" else kernel.asm["ptx"]
    registers, spilled = resources(case.generation, kernel.asm)
    counts = case.kernel in ("project", "sweep") or case.constants.get("SPLITS", 1) > 1
    return {
        "generation": case.generation,
        "kernel": case.kernel,
        "bits": case.bits,
        "configuration": case.what,
        "aligned": case.aligned,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_memory": kernel.metadata.shared,
        "shared_memory_limit": SHARED_MEMORY[case.generation],
        "matrix_instruction": next((n for n, p in MATRIX_INSTRUCTIONS.items() if re.search(p, assembly)), None),
        "weight_load_bytes": weight_load_bytes(assembly) if case.kernel in PRODUCTS else None,
        "counts_in_order": counts_in_order(assembly) if counts and "ptx" in kernel.asm else None,
    }


def resources(generation: str, asm: dict) -> tuple[int, int]:
    """Returns registers per thread, and the bytes that did not fit into them."""
    if generation == "gfx942":
        used, spilled = (re.search(rf"\.vgpr_{key}:\s+(\d+)", asm["amdgcn"]) for key in ("count", "spill_count"))
        return int(used.group(1)), 4 * int(spilled.group(1))
    usage = cuobjdump(asm, "--dump-resource-usage")
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    return int(registers), int(stack) + int(local)


def cuobjdump(asm: dict, option: str) -> str:
    """Returns what NVIDIA's tool says of a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, option, str(cubin)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def machine_code(asm: dict) -> list[cycles.Instruction]:
    """Returns a kernel for an NVIDIA GPU, instruction by instruction."""
    return cycles.instructions(cuobjdump(asm, "-sass"))


def weight_load_bytes(assembly: str) -> int:
    """Returns the narrowest load by the line that loads the weights of a matrix product."""
    lines = inspect.getsource(matmul).splitlines()
    loading = [number for number, line in enumerate(lines, 1) if re.search(r"tl\.load\((weight|second)_rows", line)]
    # The lines of other files have numbers, too.
    (file,) = re.findall(r'\.file\s+(\d+)\s.*[/"]matmul\.py"', assembly)[:1]
    widths, here = [], 0
    for line in assembly.splitlines():
        location = re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line)
        if location:
            here = int(location.group(2)) if location.group(1) == file else 0
        elif here in loading:
            widths += load_bytes(line)
    return min(widths)


def counts_in_order(ptx: str) -> bool:
    """Says whether programs store what the last one reads before they count themselves, and it reads after.

    Stores, a barrier, one thread that counts (releasing and acquiring), a barrier, loads past the first-level cache.
    """
    kinds = {"s": r"st\.global", "b": r"bar\.sync", "c": r"@%p\d+ atom\.global\.gpu\.acq_rel", "a": r"atom\.",
             "l": r"ld\.global\.cg"}  # fmt: skip
    pattern = "|".join(f"(?P<{name}>{kind})" for name, kind in kinds.items())
    order = "".join(match.lastgroup or "" for match in re.finditer(pattern, ptx))
    return re.fullmatch(r"[^cal]*sb+cb+[sb]*l[sbl]*", order) is not None


def load_bytes(line: str) -> list[int]:
    """Returns the bytes of a load from global memory, if the line is one."""
    if match := re.search(r"cp\.async\.\w+\.shared\.global[^;]*\], (0x\w+|\d+)", line):
        return [int(match.group(1), 0)]
    if match := re.search(r"ld\.global\S*?(?:\.v(\d))?\.[bfus](\d+)", line):
        return [int(match.group(1) or 1) * int(match.group(2)) // 8]
    if match := re.search(r"(?:global|buffer)_load_(dwordx\d|dword|ushort|ubyte|short\w*)", line):
        name = match.group(1)
        return [4 * int(name[-1])] if name.startswith("dwordx") else [{"dword": 4}.get(name, 2)]
    return []


def markdown(rows: list[dict]) -> str:
    """Returns the report as one table: per kernel and generation the most registers and shared memory."""
    kernels, generations = list(dict.fromkeys(row["kernel"] for row in rows)), list(TARGETS)

    def most(kernel: str, generation: str) -> str:
        own = [row for row in rows if (row["kernel"], row["generation"]) == (kernel, generation)]
        spilled = max(row["spilled_bytes"] for row in own)
        cell = f"{max(row['registers'] for row in own)}, {max(row['shared_memory'] for row in own) // 1024} KiB"
        return cell + (f", {spilled} spilled" if spilled else "")

    table = [[kernel, *(most(kernel, generation) for generation in generations)] for kernel in kernels]
    return (
        "# The fused kernels, compiled\n\n"
        f"Made by `make static-report` with triton {triton.__version__}: {len(rows)} configurations, none of them run.\n"
        "Most registers per thread, most shared memory per block, bytes spilled (only where sizes are odd).\n\n"
        f"{markdown_table(['kernel', *generations], table)}\n"
    )


def representative(table: dict) -> list[Case]:
    """Lists one configuration per kernel for sm_90, and for the other generations those of the largest kernels."""
    listed: dict[tuple[str, str], Case] = {}
    for generation in TARGETS:
        for case in cases(generation, table[generation]):
            if generation == "sm_90" or case.kernel in ("codebook", "sweep", "projected", "gated", "attention"):
                listed.setdefault((generation, case.kernel), case)
    return list(listed.values())
