"""The pages say what the committed records say, and no benchmark is slower unnoticed."""

import copy
import json

import pytest
import typer
from typer.testing import CliRunner

from bench import RESULTS
from bench.report import compare, pages, plots, records, tables

CPU = RESULTS / "bench_cpu.json"


@pytest.fixture
def content():
    """A record of a CPU as pytest-benchmark writes it."""
    return json.loads(CPU.read_text(encoding="utf-8"))


@pytest.fixture
def gpu(content, tmp_path):
    """The record of an invented GPU on which all targets are met."""
    content["machine_info"]["device"] = "NVIDIA Invented"
    content["ceilings"] = {"bytes_per_second": 1e12, "operations_per_second": {"bfloat16": 1e15, "float32": 1e14}}
    content["benchmarks"] = []

    def add(test, seconds, calls=1, **facts):
        facts = {"calls": calls, "dtype": "bfloat16", **facts}
        stats = {"median": seconds * calls, "q1": 0.9 * seconds * calls, "q3": 1.2 * seconds * calls}
        content["benchmarks"].append({"name": f"{test}[{facts}]", "extra_info": facts, "stats": stats})

    for shape, images in (("1B", 4), ("7B", 4), ("7B", 16), ("7B", 32)):
        stage = {"shape": shape, "images": images, "candidates": 4, "bytes": 10**9, "operations": 0}
        add("test_head_stage", 2e-3 if images == 32 else 1.2e-3, 3, backend="triton", **stage)
        add("test_head_stage", 24e-3, backend="reference", **stage)
        add("test_head_stage", 2.4e-3, backend="torch, compiled", **stage)
    for way, seconds, memory in (("baseline", 10e-3, 5_000_000), ("DoLa", 10.1e-3, 25_000_000)):
        step = {"model": "7B", "images": 16, "launch": "graph", "way": way, "bytes": 8 * 10**9, "operations": 0}
        add("test_step", seconds, window=1, **step)
        add("test_step", 2 * seconds, window=8, **step)
        for model, images in (("1B", 1), ("1B", 4), ("7B", 1), ("7B", 16)):
            image = {"model": model, "images": images, "way": way, "codes_a_pass": 1.0}
            faster = image | {"window": "auto", "codes_a_pass": 2.5, "memory_bytes": 2 * memory}
            add("test_image", 2.0, loop="ours, graph", **faster)
            add("test_image", 4.0, loop="ours, graph", window=1, memory_bytes=memory, **image)
            add("test_image", 12.0, loop="plain loop", window=1, **image)
            add("test_image", 5.0, loop="transformers", window=1, **image)
    path = tmp_path / "bench_gpu.json"
    path.write_text(json.dumps(content))
    return records.read(path)


def cells(table):
    return [line.split("|")[-2].strip() for line in table.splitlines()[2:]]


def test_the_pages_are_those_of_the_committed_records():
    actual = records.committed()
    assert actual
    for path, name, text in (
        (pages.PERFORMANCE, "performance", tables.performance(actual)),
        (pages.REPORT, "results", pages.results(actual)),
    ):
        assert pages.between(name).search(path.read_text(encoding="utf-8"))[0] == text, "run `make report`"
    for record in actual:
        for plot in plots.PLOTS:
            assert (pages.PLOTS / f"{pages.file_name(record)}_{plot.__name__}.svg").exists()


def test_records_name_what_made_them_and_not_whose_machine():
    for path in records.RESULTS.glob("bench_*.json"):
        made = json.loads(path.read_text(encoding="utf-8"))["machine_info"]
        assert {"device", "torch", "triton", "transformers", "revision", "date"} <= set(made)
        assert not {"node", "release", "user"} & set(made)


def test_a_gpu_fills_the_table_of_targets(gpu):
    expected = ["1.20 x", "1.20 x", "20.00 x", "2.00 x", "1.01 x", "79%", "6.00 x", "6.00 x", "2.50 x", "20.0 MB"]
    assert cells(tables.on_a_gpu(gpu)) == expected
    assert cells(tables.on_a_gpu(None)) == [tables.NOT_MEASURED] * len(expected)
    assert gpu.device in tables.made_with(gpu)
    assert "Not measured here: Sweep, Launches, Tokens of text, Pieces of other libraries." in tables.report(gpu)
    assert pages.file_name(gpu) == "nvidia_invented"


def test_rows_that_measure_something_else_say_so_or_go(content, tmp_path):
    def stage(shape, images, dtype):
        record = records.read(path)
        start = f"| {shape} | {dtype} | {images} | "
        return [line.split("|")[-2].strip() for line in tables.report(record).splitlines() if line.startswith(start)]

    path = tmp_path / "bench_cpu.json"
    path.write_text(json.dumps(content))
    assert set(stage("mini", 4, "float32")[:2]) == {"calls"}  # a call of Python takes longer than its operations
    assert all(share.endswith(" x") for share in stage("1B", 4, "bfloat16"))
    rates = content["ceilings"]["operations_per_second"]
    rates["bfloat16"] = rates["float32"] / 2
    path.write_text(json.dumps(content))
    assert stage("1B", 4, "float32")
    assert stage("1B", 4, "bfloat16") == []
    assert "rows in bfloat16 are left out" in tables.made_with(records.read(path))


def test_the_time_of_a_round_is_shared_by_its_calls(gpu):
    row = gpu.select("test_head_stage", shape="1B", backend="triton")[0]
    assert row.median == pytest.approx(1.2e-3)
    assert row.floor == pytest.approx(1e-3)
    with pytest.raises(LookupError, match="rows of test_head_stage have"):
        gpu.median("test_head_stage", shape="7B")


def test_plots_are_drawn_from_either_kind_of_record(gpu, tmp_path):
    for record in (*records.committed(), gpu):
        for path in plots.draw(record, tmp_path, pages.file_name(record)):
            assert "</svg>" in path.read_text(encoding="utf-8")
    runs = json.loads((RESULTS / "grpo.json").read_text(encoding="utf-8"))
    assert plots.learning(runs, tmp_path / "grpo.png").stat().st_size > 0


def run_compare(before, after):
    app = typer.Typer()
    app.command()(compare.main)
    return CliRunner().invoke(app, [str(before), str(after)])


def test_comparison_tells_what_is_slower_beyond_the_noise(content, tmp_path):
    rows = content["benchmarks"]
    for row in rows:
        row["stats"] |= {"median": 1.0, "q1": 0.99, "q3": 1.01}
    rows[2]["stats"] |= {"q1": 0.8, "q3": 1.2}
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(json.dumps(content))
    changed = copy.deepcopy(content)
    for index, median in ((0, 1.04), (1, 1.1), (2, 1.3), (3, 0.5)):
        changed["benchmarks"][index]["stats"]["median"] = median
    after.write_text(json.dumps(changed))
    ended = run_compare(before, after)
    assert ended.exit_code == 1
    assert f"{len(rows)} benchmarks in both, 1 slower beyond the noise" in ended.stdout
    assert f"| {rows[1]['name']} | 1 s | 1.1 s | 1.10 x | 5% |" in ended.stdout
    assert run_compare(before, before).exit_code == 0
    changed["machine_info"]["device"] = "another"
    after.write_text(json.dumps(changed))
    ended = run_compare(before, after)
    assert ended.exit_code == 2
    assert "both records must be of one device" in ended.stderr


def test_markers_must_be_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must have the markers 'results' once, got 0"):
        pages.replace(page, "results", "x")
