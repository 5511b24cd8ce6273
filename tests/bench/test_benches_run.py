"""What is timed is called, each function once, on a CPU and at tiny sizes: times mean nothing here, errors do.

Skipped is what other libraries for GPUs would do. `bench.gpu.sanitized` needs a GPU.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from bench import ROOT
from bench.report import pages
from bench.speed import (
    cases,
    floor,
    models,
    paired,
    passes,
    peer_openvino,
    serve_floods,
    serve_load,
    test_head_stage,
    test_text,
    text_smollm2,
    tiny,
)
from tests.kernels.test_head_torch import Operators


@pytest.fixture
def small(monkeypatch):
    """Sizes of `tiny` in this process."""
    tiny.shrink(monkeypatch)
    monkeypatch.setattr(models, "_loaded", {})


def test_every_benchmark():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench/speed",
        "--tiny",
        "--benchmark-disable",
        "-p",
        "no:cacheprovider",
        "-rs",
    ]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    skipped = re.findall(r"SKIPPED \[\d+\] .*: (.*) is not installed", run.stdout)
    assert set(skipped) <= {"liger-kernel", "flashinfer"}
    assert run.stdout.count("SKIPPED") == len(skipped)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_settings_are_made_outside_the_time_of_the_head_stage(small, backend):
    """A pass has them on the device: making them takes four launches, a tenth of the stage on a GPU."""
    shape = floor.SHAPES["1B"]
    case = cases.random_cases(shape, 3, 2, torch.float32, "cpu")[0]
    with Operators() as operators:
        test_head_stage.stage(backend)(case)
    assert not [name for name in operators.names if "full" in name]


def test_contenders_of_a_paired_run(small):
    seconds = paired.measure(models.FEW_BLOCKS, images=1, rounds=2)
    assert len(seconds) == 10
    assert {len(each) for each in seconds.values()} == {2}
    assert len(paired.rows(models.FEW_BLOCKS, 1, seconds)) == len(paired.DTYPES) + 1


def test_passes(small, monkeypatch, tmp_path):
    assert passes.drawing_codes_only("float16").image_model.to_pixels(torch.zeros(2, 64)).shape == (2, 3, 1, 1)
    written = {}
    monkeypatch.setattr(passes, "FILE", tmp_path / "passes.json")
    monkeypatch.setattr(passes, "drawing_codes_only", lambda dtype: models.load("mini", "cpu", dtype))
    monkeypatch.setattr(pages, "replace", lambda page, section, text: written.update({section: text}))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    passes.main(images=2, images_of_dtypes=1)
    record = json.loads((tmp_path / "passes.json").read_text(encoding="utf-8"))
    assert set(record["differences"]) == set(passes.DTYPES)
    assert "Mini model, 2 captions" in written["passes"]


def test_text_on_a_cpu(small):
    def tokenizer(prompts, **options):
        ids = torch.arange(3, 3 + 4 * len(prompts)).reshape(len(prompts), 4)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    model = test_text.random_llama.__wrapped__("mini", "cpu", "float32")
    milliseconds = text_smollm2.measure(model, tokenizer, batch=2, tokens=2, rounds=1)
    assert list(milliseconds) == list(text_smollm2.METHODS)


def test_a_server_under_load(capsys):
    serve_load.main(requests=2, clients=2, memory_requests=2)
    out = capsys.readouterr().out
    assert "2 of 2 answered\nimages equal" in out
    assert len(re.findall(r"\d+ requests: \d+ MiB", out)) == 2


def test_a_server_under_floods(capsys, monkeypatch):
    monkeypatch.setattr(serve_floods, "FLOODS", {"one image each": (2, dict)})
    serve_floods.main(tries=1, half_open_connections=20, half_seconds=0.1)
    lines = re.findall(r"(alone|one image each|20 half open) +p50 .* 1 asked, 0 refused", capsys.readouterr().out)
    assert lines == ["alone", "one image each", "20 half open"]


def test_our_blocks_beside_openvino(small):
    assert peer_openvino.ours(torch.bfloat16, rows=2)() is not None


def test_tuning(small, monkeypatch):
    """Of one generation, with one choice for each entry: the calls are made once."""
    pytest.importorskip("triton")
    from bench.gpu import tune
    from janus_dola.kernels.gpu.launch import TABLE, SweepLaunch

    def call(calls):
        calls[0]()
        return 1.0

    table, writes = json.loads(TABLE.read_text(encoding="utf-8")), []
    before, small_choices = tune.dump(table), tune.launches
    monkeypatch.setattr(tune, "seconds_a_call", call)
    monkeypatch.setattr(tune, "launches", lambda entry: small_choices(entry)[-1:])
    monkeypatch.setattr(tune, "SWEEPS", [SweepLaunch(512, 32, 4)])
    monkeypatch.setattr(tune, "images_of", lambda entry, kernel: 1)
    monkeypatch.setattr(tune, "BLOCK_IMAGES", 1)
    tune.tune(table, "sm_90", "cpu", lambda: writes.append(tune.dump(table)))
    assert [{**entry, "max_images": 0} for entry in table["sm_90"]["sweep"]] == 2 * [
        {"max_images": 0, "block_codes": 512, "max_parts": 32, "num_warps": 4}
    ]
    assert len(set(writes)) > 1
    assert writes[-1] != before
    assert all(table["sm_90"][kernel][0]["num_stages"] == 5 for kernel in ("qkv", "gate_up", "added"))
    assert json.loads(writes[-1]) == table
