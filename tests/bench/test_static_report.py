"""What can be known of the compiled kernels without a GPU.

`make test` compiles a few configurations per GPU generation. `make test-triton` compiles all of them (`--all-kernels`), and
forecasts from them.
"""

import json
import os
import subprocess
import sys

import pytest

from bench import ROOT

pytest.importorskip("triton")
PRODUCTS = ("project", "codebook", "projected", "gated", "added")
EVERYTHING = {
    *PRODUCTS, "attention", "combine", "weigh", "add_normed", "normalise", "sweep", "scores", "truncate", "feed", "accept",
}  # fmt: skip
GENERATIONS = {"sm_80", "sm_89", "sm_90", "sm_100", "gfx942"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, request) -> dict:
    """Compiles the kernels anew. Not under the interpreter, so in another process."""
    folder = tmp_path_factory.mktemp("static")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-m", "bench.forecast", "--record", str(folder / "record.json")]
    if not request.config.getoption("--all-kernels"):
        command.append("--representative")
    subprocess.run(command, env=environment, check=True, cwd=ROOT)
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


@pytest.fixture
def report(compiled) -> list[dict]:
    return compiled["kernels"]


@pytest.fixture
def complete(compiled, request) -> dict:
    if not request.config.getoption("--all-kernels"):
        pytest.skip("make test-triton compiles all kernels")
    return compiled


def name(row: dict) -> str:
    return f"{row['generation']} {row['kernel']} {row['bits']} bits, {row['configuration']}"


def test_kernels_were_compiled_for_every_gpu_and_all_for_hopper(report):
    """Those of a block, of the head stage, and of top-k and top-p."""
    kernels = {
        generation: {row["kernel"] for row in report if row["generation"] == generation} for generation in GENERATIONS
    }
    assert kernels["sm_90"] == EVERYTHING
    assert all({"codebook", "sweep", "projected", "gated", "attention"} <= each for each in kernels.values())


def test_every_configuration_of_the_table_was_compiled(complete):
    report = complete["kernels"]
    table = json.loads((ROOT / "janus_dola" / "kernels" / "gpu" / "launch_table.json").read_text(encoding="utf-8"))
    assert {row["generation"] for row in report} == set(table) == GENERATIONS
    for generation, kernels in table.items():
        assert {row["kernel"] for row in report if row["generation"] == generation} == EVERYTHING
        for kernel in ("project", "codebook"):
            rows = [row for row in report if (row["generation"], row["kernel"]) == (generation, kernel)]
            assert len(rows) == len(kernels[kernel]) + 2  # and with sizes of one, and odd ones


def test_no_registers_are_spilled(report):
    # Odd sizes are loaded 2 bytes at a time, which costs so much that a few spills do not matter.
    assert [name(row) for row in report if row["spilled_bytes"] and row["aligned"]] == []


def test_shared_memory_is_within_the_limit_of_the_chip(report):
    assert [name(row) for row in report if row["shared_memory"] > row["shared_memory_limit"]] == []


def test_weights_are_loaded_16_bytes_at_a_time(report):
    products = [row for row in report if row["kernel"] in PRODUCTS and row["aligned"]]
    assert [name(row) for row in products if row["weight_load_bytes"] != 16] == []


def test_products_of_16_bits_use_the_matrix_units(report):
    products = [row for row in report if row["kernel"] in (*PRODUCTS, "attention") and row["bits"] == 16]
    assert [name(row) for row in products if row["matrix_instruction"] is None] == []


def test_products_of_many_rows_use_wgmma_on_hopper(report):
    """In tiles whose every product has 64 outputs: two products share a tile of `projected` and `gated`."""
    tall = [row for row in report if (row["generation"], row["bits"]) == ("sm_90", 16) and row["kernel"] in PRODUCTS]
    rows = [row for row in tall if row["kernel"] in ("codebook", "added") or ", 128 x " in row["configuration"]]
    assert {row["kernel"] for row in rows} >= {"codebook", "added"}
    assert [name(row) for row in rows if row["matrix_instruction"] != "wgmma"] == []


def test_programs_count_themselves_when_their_parts_can_be_read(report):
    """The same for `added`, where programs share a tile."""
    counting = [row for row in report if row["counts_in_order"] is not None]
    assert {row["generation"] for row in counting} == GENERATIONS - {"gfx942"}
    assert {row["kernel"] for row in counting} == {"project", "sweep", "added"}
    assert [name(row) for row in counting if not row["counts_in_order"]] == []


def test_products_keep_up_with_memory(complete):
    """On an H100, by the static model: 1, 4 and 16 images, 1B and 7B."""
    products = [launch for launch in complete["stage"] if launch["kernel"] in ("project", "codebook")]
    assert len(products) == 2 * 3 * 2
    assert [each for each in products if each["instructions"] > 0.8 * max(each["memory"], each["cache"])] == []


def test_the_sweep_has_no_serial_tail(complete):
    """From its first instruction to its last; one program that went over all codes alone needed 14 to 20 us."""
    sweeps = [launch for launch in complete["stage"] if launch["kernel"] == "sweep"]
    assert len(sweeps) == 6
    assert [launch for launch in sweeps if launch["instructions"] > 9e-6] == []


def test_the_forecast_of_a_pass_reaches_its_share_of_the_floor(complete):
    """By the static model, which counts how products begin and end (bench/findings.md)."""
    shares = {
        (step["shape"], step["images"], step["window"]): step["floor"] / step["seconds"] for step in complete["passes"]
    }
    least = {("1B", 1, 1): 0.55, ("1B", 4, 8): 0.60, ("7B", 1, 1): 0.80, ("7B", 1, 16): 0.80, ("7B", 64, 1): 0.75}
    assert {case: shares[case] for case, share in least.items() if shares[case] < share} == {}
