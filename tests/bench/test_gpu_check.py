"""The stages of `make gpu-check`, run dry: a clock that only the parts move, and no GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import ROOT
from bench.gpu import check
from bench.report import records

MADE = {"device": "NVIDIA Invented", "torch": "2.11"}
CEILINGS = {"bytes_per_second": 1e12, "operations_per_second": {"bfloat16": 1e15}}
TESTS = '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="{}"><testcase name="a"/></testsuite></testsuites>'


class Machine:
    """Runs nothing: each part takes some share of its time, and leaves what it would."""

    def __init__(self, share=1.0, skipped=0):
        self.time, self.share, self.skipped, self.commands = 0.0, share, skipped, []

    def run(self, command, seconds, log):
        self.commands.append((self.time, command, seconds))
        log.write_text("...")
        self.time += seconds * min(1.0, self.share)
        for argument in command:
            if argument.startswith("--lines="):
                facts = {"calls": 2, "dtype": "bfloat16"}
                stats = {"median": 1e-3, "q1": 1e-3, "q3": 1e-3}
                line = {"name": f"{command[3]}[{len(self.commands)}]", "extra_info": facts, "stats": stats}
                # the second was being written when the part was ended
                Path(argument.removeprefix("--lines=")).write_text(json.dumps(line) + "\n" + '{"name": "cut')
            if argument.startswith("--junitxml="):
                Path(argument.removeprefix("--junitxml=")).write_text(TESTS.format(self.skipped))
        return 0 if self.share < 1 else None

    def check(self, outdir):
        return check.Check(MADE, outdir, self.run, lambda: self.time)


@pytest.fixture(autouse=True)
def sanitizer_is_there(monkeypatch):
    monkeypatch.setattr(check.shutil, "which", lambda program: program)


@pytest.mark.parametrize("stage", check.STAGES)
def test_a_stage_ends_within_ten_minutes_though_all_its_parts_hang(stage, tmp_path):
    machine = Machine(share=1.0)
    bad = machine.check(tmp_path).stage(stage, lambda: CEILINGS)
    assert machine.time <= check.LIMIT < 600
    assert bad == len(check.STAGES[stage])
    assert "NOT DONE" in (tmp_path / "check_nvidia_invented.md").read_text()


@pytest.mark.parametrize("stage", check.STAGES)
def test_all_parts_have_their_whole_time(stage):
    assert sum(part.seconds for part in check.STAGES[stage]) <= check.LIMIT


def test_stages_come_in_order_and_everything_lies_where_it_is_to(tmp_path, monkeypatch):
    machine = Machine(share=0.5)
    on_machine = machine.check(tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert list(check.STAGES) == ["correct", "head", "step", "images", "text", "tests", "rest"]
    assert sum(on_machine.stage(stage, lambda: CEILINGS) for stage in check.STAGES) == 0
    of_stages = [command[3] for _, command, _ in machine.commands if command[2] == "bench.gpu.compiling"]
    assert of_stages == ["correct", "head", "step", "images", "tests"]
    for _, command, _ in machine.commands:
        for argument in command:
            if argument.startswith(("--lines=", "--junitxml=")):
                assert Path(argument.split("=")[1]).parent == tmp_path / "out"
    monkeypatch.setattr(records, "RESULTS", tmp_path / "out")
    (record,) = records.committed()  # that of all stages
    assert record.on_gpu
    assert len(record.rows) == 8
    assert record.rows[0].median == 0.5e-3
    assert (tmp_path / "out" / "bench_nvidia_invented_head.json").exists()
    names = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert names == {".log", ".json", ".md"}


def test_times_are_kept_of_a_part_that_was_ended_and_replaced_when_it_is_run_again(tmp_path):
    for _ in range(2):
        Machine(share=1.0).check(tmp_path).stage("head", lambda: CEILINGS)
    assert len(records.read(tmp_path / "bench_nvidia_invented_head.json").rows) == 2


def test_a_skipped_test_is_no_pass(tmp_path):
    assert Machine(share=0.5, skipped=1).check(tmp_path).stage("correct", lambda: CEILINGS) == 2


def test_files_of_all_parts_exist():
    for parts in check.STAGES.values():
        for part in parts:
            files = [word.split("::")[0] for word in part.command if word.split("::")[0].endswith(".py")]
            files += [word.replace(".", "/") + ".py" for word in part.command if word.startswith("bench.")]
            assert files
            assert all((ROOT / file).exists() for file in files)


ALONE = """
import sys
for name in ("ijson", "torchao", "ray"):
    sys.modules[name] = None
from bench.gpu import check, compiling, tune
import tests.kernels.test_quick_on_gpu, tests.kernels.test_head_triton_on_gpu, tests.janus_dola.test_engine_on_gpu
for generation in ("sm_80", "sm_90"):
    for stage in compiling.STAGES:
        todo = compiling.compilations(stage, generation)
        print(len(todo), len({c.kernel for c in todo}))
"""


def test_compilations_are_few_and_nothing_optional_is_imported():
    """Elsewhere, since here Triton interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    actual = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    most = {"correct": 280, "head": 60, "step": 150, "images": 120, "tests": 350}  # of 0.2 to 0.9 s each
    assert all(10 < count <= limit for (count, _), limit in zip(actual, [*most.values()] * 2, strict=True))
    assert actual[0][1] == max(kernels for _, kernels in actual)  # all there are: truncation, too


@pytest.mark.parametrize(
    ("processors", "gpu", "host", "expected"), [(64, 141, 500, 16), (64, 8, 500, 8), (8, 80, 500, 8), (64, 0.4, 500, 1)]
)
def test_compilations_take_no_more_processes_than_there_is_room_for(monkeypatch, processors, gpu, host, expected):
    from bench.gpu import compiling

    monkeypatch.setattr(compiling, "processors", lambda: processors)
    assert compiling.processes(int(gpu * 2**30), int(host * 2**30)) == expected


def test_a_part_that_is_ended_leaves_nothing_running(tmp_path):
    """Not what it started, either."""
    started = tmp_path / "pid"
    shell = f"sleep 60 & echo $! > {started}; wait"
    assert check.run(("sh", "-c", shell), 1, tmp_path / "log") is None
    pid = int(started.read_text())
    for _ in range(100):  # until somebody has collected it
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def test_missing_packages_are_named_in_one_line(monkeypatch):
    from bench.gpu import __main__ as start

    monkeypatch.setattr(start, "find_spec", lambda name: None if name in ("pytest_benchmark", "PIL") else name)
    monkeypatch.setattr(start, "version_of", {"setuptools": "68.1"}.get)
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code == "gpu-check: missing packages: pillow pytest-benchmark setuptools>=77"


def test_cublas_has_a_workspace_that_does_not_change():
    """Else it warns at each product of a test that has switched deterministic algorithms on, and warnings are errors."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_mini_model_is_of_the_shape_that_is_compiled():
    from bench.gpu import compiling
    from janus_dola import DoLaConfig, JanusDoLa

    config, shape = JanusDoLa.from_pretrained("mini", device="cpu", dtype="float32").image_model.config, compiling.MINI
    assert (shape.hidden, shape.number) == (config.hidden_size, config.num_hidden_layers)
    assert shape.heads == config.num_attention_heads == config.num_key_value_heads
    assert shape.inner == config.intermediate_size
    assert (len(DoLaConfig().layers_to_read(shape.number)) + 1, 1) == compiling.MINI_LAYERS


def test_a_triton_without_the_sanitizer_is_said_and_nothing_runs(monkeypatch, capsys):
    from bench.gpu import sanitized

    monkeypatch.setattr(sanitized, "available", lambda: False)
    monkeypatch.setattr(sanitized.pytest, "main", None)
    sanitized.main()
    assert "SUMMARY: not measured: triton" in capsys.readouterr().out


def test_a_stage_that_does_not_exist_is_named():
    command = [sys.executable, "-m", "bench.gpu", "heads"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "got 'heads'" in run.stderr
