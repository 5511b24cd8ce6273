import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from janus_dola import compute
from janus_dola.batch import Compute, RunSettings, batch_run, ray_pool, run_batch
from janus_dola.compute import plan_workers
from tests.janus_dola.batch_helpers import SHAPES, lines, pictures, without_seconds

ray = pytest.importorskip("ray")
ONE = RunSettings(parallel_size=1)


@pytest.fixture(scope="module")
def cluster():
    """A user's own Ray, which a run uses and leaves as it is."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    assert ray.is_initialized()
    ray.shutdown()


class Killer:
    """A log of the pool; once both workers are ready and some images are there, kills the first worker."""

    def __init__(self, outdir):
        self.lines, self._outdir = [], outdir
        self.ready = []

    def __call__(self, line):
        self.lines.append(line)
        self.ready += re.findall(r"worker ready: pid (\d+) on", line)
        if len(self.ready) == 2 and not any("lost" in line for line in self.lines):
            threading.Thread(target=self._kill).start()

    def _kill(self):
        while len(list(self._outdir.glob("*.jpg"))) < 4:
            time.sleep(0.02)
        os.kill(int(self.ready[0]), signal.SIGKILL)


def test_two_workers_one_killed_half_way_draw_what_one_process_draws(
    mini, tmp_path, monkeypatch, one_rounding, cluster
):
    alone, outdir, settings = tmp_path / "alone", tmp_path / "out", RunSettings(parallel_size=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray gives each actor; with more, sums are rounded otherwise
    try:
        run_batch(SHAPES[:8], alone, settings, Compute(batch_size=2), pipe=mini)
    finally:
        torch.set_num_threads(threads)
    log = Killer(outdir)
    monkeypatch.setattr(batch_run, "_silent", log)
    summary = run_batch(SHAPES[:8], outdir, settings, Compute("cpu", workers=2, batch_size=2))
    assert any(line.startswith(f"worker lost: pid {log.ready[0]} on") for line in log.lines)
    assert (summary.drawn, summary.failed) == (16, 0)
    assert pictures(outdir) == pictures(alone)
    assert without_seconds(outdir) == without_seconds(alone)


PATIENCE = 16  # calls a quarter of a second apart


@pytest.fixture(scope="module")
def faults(tmp_path_factory, cluster):
    """The manifest of a run with one worker, the process that drew each prompt, and those that tried the batch "poison".

    A worker is slow with one batch. Over another the first freezes, and the next one dies.
    """
    folder = tmp_path_factory.mktemp("faults")
    tried, outdir = folder / "processes that tried", folder / "out"
    tried.touch()

    class Faulty(ray_pool._Actor):
        calls = 0

        def is_there(self):
            self.calls += 1
            return True

        def load(self, settings, compute):
            return "float32", 2, f"pid {os.getpid()} on this"

        def draw(self, batch):
            from janus_dola.batch.worker import EncodedImage

            (task,) = batch
            if task.prompt == "slow":
                while self.calls <= PATIENCE:  # longer than a silent one is waited for
                    time.sleep(0.1)
            if task.prompt == "poison":
                while len(list(outdir.rglob("*.jpg"))) < 2:  # else a finished image may be lost with the process
                    time.sleep(0.1)
                first = not tried.read_text()
                with tried.open("a") as file:
                    file.write(f"{os.getpid()} ")
                if first:
                    os.kill(os.getpid(), signal.SIGSTOP)
                    time.sleep(60)  # this thread may go on for a moment
                os._exit(1)
            return [EncodedImage(str(os.getpid()).encode(), None, {"seconds": 0.0})]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_pool, "_Actor", Faulty)
        patch.setattr(ray_pool, "_PATIENCE", PATIENCE)
        patch.setattr(ray_pool, "_SECONDS_BETWEEN_CALLS", 0.25)
        patch.setattr(ray_pool, "_PATIENCE_WITH_LOADING", 400)  # a process may take long to start on a busy machine
        patch.setattr(ray_pool, "_ATTEMPTS", 2)
        run_batch(["a", "slow", "poison", "b"], outdir, ONE, Compute("cpu", workers=1, batch_size=1))
    drawn_by = {line["prompt"]: (outdir / line["file"]).read_text() for line in lines(outdir) if line["file"]}
    return lines(outdir), drawn_by, tried.read_text().split()


def test_a_batch_that_kills_every_worker_fails_and_the_run_goes_on(faults):
    manifest, drawn_by, tried = faults
    assert [line["prompt"] for line in manifest if line["file"] is None] == ["poison"]
    assert manifest[2]["error"].startswith("2 workers died over the batch with this image; the last: ")
    assert drawn_by["b"] not in tried


def test_a_frozen_worker_is_replaced_and_a_slow_one_is_not(faults):
    _, drawn_by, (frozen, other) = faults
    assert drawn_by["a"] == drawn_by["slow"] == frozen != other


def test_a_model_that_is_not_there_is_said_in_one_line_and_ends_a_ray_of_our_own(tmp_path, monkeypatch, cluster):
    ended = []

    @contextlib.contextmanager
    def connected(module, address):
        yield
        ended.append(True)

    monkeypatch.setattr(ray_pool, "connected", connected)
    with pytest.raises(FileNotFoundError, match="no/such/model") as raised:
        run_batch(["a"], tmp_path, RunSettings("no/such/model"), Compute("cpu", workers=1))
    assert len(str(raised.value).splitlines()) == 1
    assert ended == [True]


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


ANSWERS = {
    "nothing": b"",
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "http2": bytes(3) + b"\x04" + bytes(5),  # the greeting of every server of HTTP/2
}


@pytest.mark.parametrize(
    ("form", "answer"), [("127.0.0.1:{}", "http2"), ("ray://127.0.0.1:{}", "http"), ("auto", "nothing")]
)
def test_a_port_that_is_not_rays_is_said_soon(tmp_path, monkeypatch, form, answer):
    assert compute._SECONDS_TO_CONNECT + compute._SECONDS_TO_ANSWER <= 25
    monkeypatch.setattr(compute, "_SECONDS_TO_ANSWER", 3.0)
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


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "h..x:1234"])
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


@pytest.fixture
def fake_ray():
    """A module that notes the environment in which a cluster is started."""
    made = SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None, started=[])
    made.init = lambda **arguments: made.started.append((dict(os.environ), arguments))
    made._private = SimpleNamespace(ray_constants=SimpleNamespace(ENABLE_RAY_CLUSTER=True))
    loader = SimpleNamespace(reset_cache=lambda: None)
    made._raylet = SimpleNamespace(
        Config=SimpleNamespace(initialize=lambda text: None),
        AuthenticationTokenLoader=SimpleNamespace(instance=lambda: loader),
    )
    return made


def test_a_cluster_of_our_own_has_a_token_and_listens_on_loopback(fake_ray, monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    with compute.connected(fake_ray, None):
        assert fake_ray._private.ray_constants.ENABLE_RAY_CLUSTER is False
    (environment, arguments), *_ = fake_ray.started
    assert (environment["RAY_AUTH_MODE"], environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]) == ("token", "0")
    assert re.fullmatch("[0-9a-f]{64}", environment["RAY_AUTH_TOKEN"])
    assert arguments["include_dashboard"] is False
    assert (dict(os.environ), fake_ray._private.ray_constants.ENABLE_RAY_CLUSTER) == (before, True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with compute.connected(fake_ray, None):
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"


def test_a_cluster_of_our_own_without_tokens_is_refused(fake_ray, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with (
        pytest.raises(ValueError, match="RAY_AUTH_MODE must be token, or not set, .* got 'disabled'"),
        compute.connected(fake_ray, None),
    ):
        pass
    assert not fake_ray.started
