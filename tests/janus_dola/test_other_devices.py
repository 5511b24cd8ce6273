"""Devices that are neither a CPU nor CUDA, and systems that are not POSIX, as far as one sees without them."""

import subprocess
import sys

import pytest
import torch

from janus_dola import DoLaConfig, JanusDoLa
from janus_dola.engine.capacity import images_that_fit
from tests.janus_dola.fake_mac import MPS, FakeMac


@pytest.fixture
def apple(monkeypatch):
    """What torch would answer on a Mac with 16 MB for tensors."""
    taken = {"bytes": 0, "given back": 0}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16_000_000)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: taken["bytes"])
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: taken.update({"given back": taken["given back"] + 1}))
    for name in ("empty_cache", "current_stream", "mem_get_info", "synchronize", "device", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: pytest.fail(f"torch.cuda.{name} was asked"))
    return taken


SETTINGS = {"contrast": DoLaConfig(alpha=0.2), "seed": 2**33 + 5, "top_k": 200}


def test_a_mac_draws_what_a_cpu_draws(apple, mini):
    """Though it shifts integers wrong, and copies nothing where nobody waits."""
    expected = mini.generate("a red circle", 2, window=8, **SETTINGS)
    with FakeMac():
        pipe = JanusDoLa.from_pretrained("mini", device="mps", dtype="float32")
        assert pipe.image_model.device == MPS
        drawn = pipe.generate("a red circle", 2, window=8, **SETTINGS)
    assert torch.equal(drawn.tokens, expected.tokens)
    assert torch.equal(drawn.premature_layers, expected.premature_layers)
    assert drawn.images[0][1].tobytes() == expected.images[0][1].tobytes()


def test_as_many_images_as_its_memory_holds(apple):
    with FakeMac():
        pipe = JanusDoLa.from_pretrained("mini", device="mps", dtype="float32")
        few, apple["bytes"] = images_that_fit(pipe.image_model, 16), 15_000_000
        one = images_that_fit(pipe.image_model, 16)
    assert (few, one) == (2, 1)  # 3.1 MB of keys and values each, in 70% of what is free


def test_half_as_many_where_its_memory_runs_out(apple, mini):
    expected = mini.generate("a red circle", 2, **SETTINGS)
    with FakeMac() as mac:
        pipe = JanusDoLa.from_pretrained("mini", device="mps", dtype="float32")
        mac.room = 4_000_000  # keys and values of one image, and no more
        drawn = pipe.generate("a red circle", 2, max_images=2, **SETTINGS)
        assert (pipe.engine.fit(16), apple["given back"]) == (1, 1)
        mac.room = 100_000
        with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory with 1 image\(s\) at once: free memory"):
            pipe.generate("a red circle", **SETTINGS)
    assert torch.equal(drawn.tokens, expected.tokens)


def test_without_posix_and_triton(tmp_path):
    """Windows has neither these functions and signals nor these modules."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n", encoding="utf-8")
    code = """if True:
        import os, signal, sys
        sys.modules["triton"] = None
        from transformers import JanusForConditionalGeneration
        functions = "sched_getaffinity chown fork getuid setsid sync O_NOFOLLOW O_DIRECTORY"
        signals = "SIGHUP SIGKILL SIGQUIT SIGUSR1 pthread_sigmask"
        for module, names in ((os, functions), (signal, signals)):
            for name in names.split():
                if hasattr(module, name):
                    delattr(module, name)
        for name in ("fcntl", "resource", "pwd", "grp", "termios"):
            sys.modules[name] = None
        import janus_dola.serve.server
        from janus_dola.cli.app import app, run
        sys.argv = ["janus-dola", "batch", "--prompts", "prompts.txt", "--outdir", "out", "--parallel-size", "1"]
        run(app)
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2
