import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from janus_dola import compute
from janus_dola.batch import Compute, RunSettings, ray_pool, run_batch
from janus_dola.compute import plan_workers
from tests.janus_dola.batch_helpers import SHAPES, lines, pictures, without_seconds

ray = pytest.importorskip("ray")
COMMAND = [
    sys.executable, "-m", "janus_dola.cli.app", "batch", "--prompts", "prompts.json", "--parallel-size", "2",
    "--batch-size", "2", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": SHAPES[:14]}))
    return tmp_path / "prompts.json"


def test_two_workers_one_killed_half_way_draw_what_one_process_draws(prompts, mini, tmp_path, one_rounding):
    alone, outdir = tmp_path / "alone", tmp_path / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray gives each actor; with more, sums are rounded otherwise
    try:
        run_batch(prompts, alone, RunSettings(parallel_size=2), Compute(batch_size=2), pipe=mini)
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / "log").open("w+") as log:
        command = [*COMMAND, "--outdir", "out", "--workers", "2"]
        running = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        ready = []
        while len(ready) < 2 or len(list(outdir.glob("*.jpg"))) < 14:
            assert running.poll() is None, (tmp_path / "log").read_text()
            ready = re.findall(r"worker ready: pid (\d+) on", (tmp_path / "log").read_text())
            time.sleep(0.02)
        os.kill(int(ready[0]), signal.SIGKILL)
        assert running.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_text()
    assert f"worker lost: pid {ready[0]} on" in text
    assert "28 images of 14 prompts in out" in text
    assert pictures(outdir) == pictures(alone)
    assert without_seconds(outdir) == without_seconds(alone)
    assert len(lines(outdir)) == 28


@pytest.fixture(scope="module")
def cluster():
    """A user's own Ray, which a run uses and leaves as it is."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    assert ray.is_initialized()
    ray.shutdown()


def test_a_batch_that_kills_every_worker_fails_and_the_run_goes_on(tmp_path, monkeypatch, cluster):
    class Dies(ray_pool._Actor):
        def load(self, settings, compute):
            return "float32", 2, f"pid {os.getpid()} on this"

        def draw(self, batch):
            from janus_dola.batch.worker import EncodedImage

            if any(task.prompt == "poison" for task in batch):
                os._exit(1)
            return [EncodedImage(b"an image", None, 0.0, 0.0, {}, 0.0)] * len(batch)

    monkeypatch.setattr(ray_pool, "_Actor", Dies)
    prompts = ["a", "b", "poison", "c", "d", "e"]
    summary = run_batch(prompts, tmp_path, RunSettings(parallel_size=1), Compute("cpu", workers=2, batch_size=1))
    assert (summary.drawn, summary.failed) == (5, 1)
    assert [line["index"] for line in lines(tmp_path) if line["file"] is None] == [2]
    assert lines(tmp_path)[2]["error"].startswith("3 workers died over the batch with this image; the last: ")


def test_a_model_that_is_not_there_is_said_in_one_line(tmp_path, cluster):
    with pytest.raises(FileNotFoundError, match="no/such/model") as raised:
        run_batch(["a"], tmp_path, RunSettings("no/such/model"), Compute("cpu", workers=1))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("resources", "chosen", "plan"),
    [
        ({"CPU": 8.0, "GPU": 2.0}, Compute(ray_address="auto"), ({"num_gpus": 1, "num_cpus": 1}, 2)),
        ({"CPU": 8.0, "GPU": 2.0}, Compute(workers=1), ({"num_gpus": 1, "num_cpus": 1}, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, Compute("cpu", workers=4), ({"num_cpus": 1}, 4)),
        ({"CPU": 8.0}, Compute(workers=8), ({"num_cpus": 1}, 8)),
        ({"CPU": 8.0}, Compute(workers=9), "workers must be at most the 8 CPU cores of the Ray cluster, got 9"),
        ({"CPU": 8.0, "GPU": 2.0}, Compute(workers=3), "workers must be at most the 2 GPUs of the Ray cluster, got 3"),
        ({"CPU": 8.0}, Compute(ray_address="auto"), "workers must be given where the Ray cluster has no GPU, got None"),
        ({"CPU": 8.0}, Compute("cuda", workers=1), 'device must be "cpu" where the Ray cluster has no GPU, got "cuda"'),
    ],
)
def test_workers_fit_the_cluster(resources, chosen, plan):
    if isinstance(plan, str):
        with pytest.raises(ValueError, match=plan):
            plan_workers(resources, chosen)
    else:
        assert plan_workers(resources, chosen) == plan


def test_a_frozen_worker_is_replaced_and_a_slow_one_is_not(tmp_path, monkeypatch, cluster):
    marker = tmp_path / "frozen once"
    patience = 16  # calls a quarter of a second apart

    class Freezes(ray_pool._Actor):
        calls = 0

        def is_there(self):
            self.calls += 1
            return True

        def load(self, settings, compute):
            return "float32", 2, f"pid {os.getpid()} on this"

        def draw(self, batch):
            from janus_dola.batch.worker import EncodedImage

            if any(task.prompt == "poison" for task in batch) and not marker.exists():
                while len(list(tmp_path.rglob("*.jpg"))) < 2:  # else a finished image may be lost with the process
                    time.sleep(0.1)
                marker.touch()
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(60)  # this thread may go on for a moment
            if batch[0].prompt == "slow":
                while self.calls <= patience:  # longer than a silent one is waited for
                    time.sleep(0.1)
            return [EncodedImage(str(os.getpid()).encode(), None, 0.0, 0.0, {}, 0.0)] * len(batch)

    monkeypatch.setattr(ray_pool, "_Actor", Freezes)
    monkeypatch.setattr(ray_pool, "_PATIENCE", patience)
    monkeypatch.setattr(ray_pool, "_SECONDS_BETWEEN_CALLS", 0.25)
    prompts = ["a", "slow", "poison", "b"]
    summary = run_batch(
        prompts, tmp_path / "out", RunSettings(parallel_size=1), Compute("cpu", workers=1, batch_size=1)
    )
    assert marker.exists()
    assert (summary.drawn, summary.failed) == (4, 0)
    a, slow, poison, b = ((tmp_path / "out" / line["file"]).read_bytes() for line in lines(tmp_path / "out"))
    assert a == slow != poison == b  # each holds the process that drew it


ANSWERS = {
    "nothing": b"",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "http2": bytes(3) + b"\x04" + bytes(5),  # the greeting of every server of HTTP/2
}


@pytest.mark.parametrize(
    ("form", "answer"),
    [*(("127.0.0.1:{}", answer) for answer in ANSWERS), ("ray://127.0.0.1:{}", "http2"), ("auto", "http2")],
)
def test_a_port_that_is_not_rays_is_said_soon(tmp_path, monkeypatch, form, answer):
    assert compute._SECONDS_TO_CONNECT + compute._SECONDS_TO_ANSWER <= 25
    monkeypatch.setattr(compute, "_SECONDS_TO_ANSWER", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        connections = []

        def serve():
            with contextlib.suppress(OSError):  # closed
                while True:
                    connections.append(server.accept()[0])
                    connections[-1].sendall(ANSWERS[answer])

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(
            ConnectionError, match=f"127.0.0.1:{port}' must be of a running Ray cluster, but: no Ray server answers"
        ) as raised:
            run_batch(["a"], tmp_path, RunSettings(), Compute(ray_address=form.format(port)))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()
    assert "\n" not in str(raised.value)


def test_rays_own_port_is_known(cluster):
    compute.check_address(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize(
    "address", ["", "local", "6379", "host:", ":6379 ", "127.0.0.1:port", "ray://", "http://host:1"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match=f'ray_address must be "auto", HOST:PORT or ray://HOST:PORT, got {address!r}'):
        Compute(ray_address=address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_nobody_answers_is_said_at_once(tmp_path, address):
    with pytest.raises(ConnectionError, match=f"ray_address '{address}' must be of a running Ray cluster, but: "):
        run_batch(["a"], tmp_path, RunSettings(), Compute(ray_address=address))


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'janus-dola\[ray\]'"):
        run_batch(["a"], tmp_path, RunSettings(), Compute(workers=2))


def test_workers_have_no_numbered_device():
    with pytest.raises(ValueError, match='device must be "cpu" or "cuda" with workers'):
        Compute("cuda:1", workers=2)
