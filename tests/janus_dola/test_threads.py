"""Threads follow what the process may use, unless the user says otherwise."""

import os
import warnings

import pytest
import torch

from janus_dola.cli import startup


@pytest.mark.parametrize(
    ("said", "expected"), [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_how_threads_wait_is_set_before_torch_is_there_unless_the_user_said(monkeypatch, said, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr(startup, "import_quietly", lambda name: seen.append((name, os.environ.get("GOMP_SPINCOUNT"))))
    monkeypatch.setattr(startup, "use_processors", lambda: None)
    with warnings.catch_warnings():
        startup.import_libraries()
    assert seen[0] == ("torch", expected)


@pytest.fixture
def quota(tmp_path, monkeypatch):
    """Writes the container's share of processor time."""
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(startup, "_QUOTA", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return file.write_text


def test_without_a_container_all_that_the_process_is_bound_to(quota):
    assert startup.processors() == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("1600000 100000\n", 8),
    ],
)
def test_a_container_has_its_share(quota, text, expected):
    quota(text)
    assert startup.processors() == expected


@pytest.mark.parametrize(("said", "torchs", "expected"), [(None, 64, 2), ("64", 64, 64), (None, 1, 1)])
def test_torch_is_told_unless_the_user_said(quota, monkeypatch, said, torchs, expected):
    quota("200000 100000\n")
    count = [torchs]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: count.__setitem__(0, number))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    startup.use_processors()
    assert count[0] == expected
