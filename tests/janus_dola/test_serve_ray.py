"""Two replicas under Ray Serve on this machine."""

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys

import httpx
import openai
import psutil
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("grpc") is None, reason="Ray Serve is not installed: pip install 'janus-dola[replicas]'"
)


def replicas(server):
    """Processes of Ray Serve that draw, and come from this one."""
    return [process for process in psutil.Process(server).children(recursive=True) if draws(process)]


def draws(process):
    try:
        return "ServeReplica:janus-dola" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # Ray ends workers that it does not need
        return False


def processor_time(process):
    """Seconds."""
    return sum(process.cpu_times()[:2])


def listening(process):
    """Addresses at which a process listens."""
    return {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}


KEY = "a key that Ray must not see"


def same_routes_as_one_engine(url, headers):
    with httpx.Client(base_url=url, headers=headers) as client:
        for prefix in ("", "/janus"):
            assert [model["id"] for model in client.get(f"{prefix}/v1/models").json()["data"]] == ["mini", "b/c"]
            assert client.get(f"{prefix}/v1/models/b%2Fc").json()["id"] == "b/c"
            head = client.head(f"{prefix}/health")
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "18")
        assert "base URL must be" in client.post("/images/generations", json={}).json()["error"]["message"]
        assert client.get("/v1/images/generations").headers["allow"] == "POST"
        assert client.post("/v1/images/generations", content=b"{}").status_code == 415
        assert '"root": "/janus/"' in client.get("/").text


def test_requests_spread_and_all_are_answered_though_a_replica_is_killed(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "janus_dola", "serve", "--device", "cpu", "--replicas", "2", "--port", str(port),
        "--served-model-name", "mini", "b/c", "--root-path", "/janus",
    ]  # fmt: skip
    environment = {**os.environ, "JANUS_DOLA_API_KEY": KEY, "HOME": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as server:
        try:
            assert any("draws with mini, 2 replicas" in line for line in server.stderr)
            ours = replicas(server.pid)
            assert len(ours) == 2
            whole = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            assert set().union(*map(listening, whole)) <= {"127.0.0.1", "::ffff:127.0.0.1"}
            assert all(KEY not in process.environ().values() for process in whole[1:])
            assert {process.environ()["RAY_AUTH_MODE"] for process in ours} == {"token"}
            assert not (tmp_path / ".ray").exists()  # the token is in no file
            idle = {process: processor_time(process) for process in ours}

            async def draw():
                client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=8)

                async def ask(seed):
                    answer = await client.images.generate(prompt="a red circle", extra_body={"seed": seed})
                    return answer.data[0].seed, answer.data[0].b64_json

                async with client:
                    first = await asyncio.gather(*map(ask, range(8)))
                    assert all(processor_time(process) - idle[process] > 0.2 for process in ours)
                    coming = asyncio.gather(*map(ask, range(8)))
                    await asyncio.sleep(0.5)
                    ours[0].kill()
                    assert await coming == first
                    with pytest.raises(openai.BadRequestError, match="b64_json"):
                        await client.images.generate(prompt="a", response_format="url")
                assert [seed for seed, _ in first] == list(range(8))

            asyncio.run(draw())
            same_routes_as_one_engine(f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"})
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_ray_answers_nobody_who_has_not_the_token_of_the_run():
    import grpc
    import ray

    from janus_dola.compute import connected

    answers = []
    with connected(ray, None), grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")  # as `ray health-check` does
        for token in (None, "0" * 64, os.environ["RAY_AUTH_TOKEN"]):
            try:
                ask(b"", metadata=token and [("authorization", f"Bearer {token}")], timeout=20)
                answers.append("OK")
            except grpc.RpcError as error:
                answers.append(error.code().name)
    assert answers == ["UNAUTHENTICATED", "UNAUTHENTICATED", "OK"]


def test_an_address_where_no_ray_answers_is_said_at_once():
    from janus_dola.compute import Compute
    from janus_dola.serve.replicas import run_replicas
    from janus_dola.serve.service import ServerOptions

    with pytest.raises(ConnectionError, match="ray_address '127.0.0.1:1' must be of a running Ray cluster, but: "):
        run_replicas(Compute("cpu", workers=1, ray_address="127.0.0.1:1"), ServerOptions("mini"), lambda: None, print)
