"""What can be known of the compiled kernels without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parent.parent.parent
PRODUCTS = ("project", "codebook", "normed", "added")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A folder with the report and the forecast, all kernels compiled anew. Not under the interpreter, so elsewhere."""
    outdir = tmp_path_factory.mktemp("static")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(outdir / "cache")
    for name in ("static_report", "head_stage"):
        command = [sys.executable, "-m", f"bench.forecast.{name}", "--outdir", str(outdir)]
        subprocess.run(command, env=environment, check=True, cwd=ROOT)
    return outdir


@pytest.fixture(scope="module")
def report(compiled) -> list[dict]:
    return json.loads((compiled / "static_report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def forecast(compiled) -> dict[str, list[dict]]:
    return json.loads((compiled / "forecast.json").read_text(encoding="utf-8"))


def name(row: dict) -> str:
    return f"{row['generation']} {row['kernel']} {row['bits']} bits, {row['configuration']}"


def test_every_configuration_of_the_table_was_compiled(report):
    table = json.loads((ROOT / "janus_dola" / "kernels" / "launch_table.json").read_text(encoding="utf-8"))
    assert {row["generation"] for row in report} == set(table) == {"sm_80", "sm_89", "sm_90", "sm_100", "gfx942"}
    for generation, kernels in table.items():
        for kernel in ("project", "codebook"):
            compiled = [row for row in report if (row["generation"], row["kernel"]) == (generation, kernel)]
            assert len(compiled) == len(kernels[kernel]) + 2  # and with sizes of one, and odd ones


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


def test_the_codebook_uses_wgmma_on_hopper(report):
    rows = [row for row in report if (row["generation"], row["kernel"], row["bits"]) == ("sm_90", "codebook", 16)]
    assert rows
    assert [name(row) for row in rows if row["matrix_instruction"] != "wgmma"] == []


def test_the_sweeps_programs_count_themselves_when_their_parts_can_be_read(report):
    sweeps = [row for row in report if row["kernel"] == "sweep" and row["generation"] != "gfx942"]
    assert len(sweeps) == 4 * 5
    assert [name(row) for row in sweeps if not row["counts_in_order"]] == []


def test_products_keep_up_with_memory(forecast):
    """On an H100, by the static model: 1, 4 and 16 images, 1B and 7B."""
    (rows,) = forecast.values()
    products = [row for row in rows if row["kernel"] in ("project", "codebook")]
    assert len(products) == 2 * 3 * 2
    assert [row for row in products if row["instructions"] > 0.8 * row["memory"]] == []


def test_the_sweep_has_no_serial_tail(forecast):
    """Microseconds from its first instruction to its last; one program that went over all codes alone needed 14 to 20."""
    (rows,) = forecast.values()
    sweeps = [row for row in rows if row["kernel"] == "sweep"]
    assert len(sweeps) == 6
    assert [row for row in sweeps if row["instructions"] > 8e-6] == []


def test_the_committed_forecast_is_of_the_present_kernels(forecast):
    committed = json.loads((ROOT / "bench" / "results" / "forecast.json").read_text(encoding="utf-8"))
    assert len(committed) == 2
    ((version, rows),) = forecast.items()
    assert committed[version] == rows, "run make static-report"


def test_all_kernels_of_a_block_and_that_of_top_k_and_top_p_were_compiled_for_every_gpu(report):
    kernels = {"normed", "attention", "combine", "added", "gate", "weigh", "truncate"}
    for generation in ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942"):
        assert kernels <= {row["kernel"] for row in report if row["generation"] == generation}


def test_the_committed_forecast_of_a_pass_reaches_its_share_of_the_floor():
    """By the static model, with one code a pass. With eight for each of four images 1B does not (bench/findings.md)."""
    committed = json.loads((ROOT / "bench" / "results" / "forecast_step.json").read_text(encoding="utf-8"))
    assert len(committed) == 2
    for passes in committed.values():
        assert len(passes) == 6
        for found in passes:
            launches = found["launches"]
            assert len(launches) == 6
            of_block = sum(max(one["memory"], one["cache"], one["instructions"]) + 1e-6 for one in launches)
            seconds = found["blocks"] * of_block + found["head"] + 25 * 1.6e-6
            if found["window"] == 1:
                assert found["floor"] / seconds >= {"1B": 0.65, "7B": 0.75}[found["shape"]]


def test_the_committed_report_is_of_the_present_table(report):
    committed = json.loads((ROOT / "bench" / "results" / "static_report.json").read_text(encoding="utf-8"))
    assert [name(row) for row in committed] == [name(row) for row in report], "run make static-report"
    said = [row["instrumented"] for row in committed if row["generation"] == "sm_90"]
    assert all(each == dict.fromkeys(("consan", "fpsan", "iisan"), "compiles") for each in said)
