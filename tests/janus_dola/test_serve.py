"""`janus-dola serve` as its clients see it."""

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from janus_dola import JanusDoLa
from janus_dola.cli import app as cli
from janus_dola.images.recipe import read_recipe
from janus_dola.serve.api import GENERATIONS
from janus_dola.serve.service import ServerOptions, Service
from tests.janus_dola.server import running, until

KEY = "a key"


class Process:
    """A server in a process of its own, at a free port."""

    def __init__(self, *options):
        command = [sys.executable, "-m", "janus_dola", "serve", "--device", "cpu", "--port", "0", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JANUS_DOLA_API_KEY": KEY}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    def wait(self):
        self.url = next(line.split()[1] for line in self.process.stderr if "draws with" in line)
        until(lambda: httpx.get(f"{self.url}/health").status_code == 200)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)
        return self


@pytest.fixture(scope="module")
def processes():
    """Two servers, started together to save time: one to talk to, one to stop."""
    servers = [Process(), Process("--slots", "2")]
    yield [server.wait() for server in servers]
    for server in servers:
        server.process.kill()
        server.process.wait()
        server.process.stderr.close()


@pytest.fixture(scope="module")
def server(processes):
    return processes[0]


def content(image):
    return base64.b64decode(image.b64_json)


def metric(url, name):
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


def test_openai_draws_four_images_with_seeds(server, tmp_path):
    answer = server.client.images.generate(prompt="a red circle", n=4, size="64x64", extra_body={"seed": 11})
    assert [image.seed for image in answer.data] == [11, 12, 13, 14]
    for image in answer.data:
        path = tmp_path / "image.png"
        path.write_bytes(content(image))
        recipe = read_recipe(path)
        assert (recipe.seed, recipe.prompt) == (image.seed, "a red circle")
    assert answer.data[0].settings["candidate_layers"] == "auto"
    assert (answer.size, answer.output_format, answer.usage.output_tokens) == ("64x64", "png", 4 * 64)
    one = server.client.images.generate(prompt="a red circle", extra_body={"seed": 13})
    assert content(one.data[0]) == content(answer.data[2])
    other, another = (server.client.images.generate(prompt="a red circle").data[0].seed for _ in range(2))
    assert other != another


def test_openai_streams_partial_images(server):
    options = {"seed": 1, "layer_map": True}
    events = list(
        server.client.images.generate(
            prompt="a red circle", stream=True, partial_images=2, output_format="webp", extra_body=options
        )
    )
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    plain = server.client.images.generate(prompt="a red circle", output_format="webp", extra_body=options)
    assert content(events[-1]) == content(plain.data[0]) != content(events[1])
    assert content(events[0])[8:12] == b"WEBP"
    assert base64.b64decode(plain.data[0].layer_map_b64_png).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "error", "param", "message"),
    [
        ({"n": 11}, openai.BadRequestError, "n", "n must be less than or equal to 10, got 11"),
        ({"n": 1.5}, openai.BadRequestError, "n", "n must be a valid integer"),
        ({"prompt": ""}, openai.BadRequestError, "prompt", "prompt must have at least 1 character, got ''"),
        ({"prompt": "a " * 600}, openai.BadRequestError, "prompt", "prompt must have at most 448 tokens, got 608"),
        ({"size": "1024x1024"}, openai.BadRequestError, "size", 'size must be "auto" or "64x64"'),
        (
            {"output_format": "gif"},
            openai.BadRequestError,
            "output_format",
            "must be 'png', 'jpeg', 'webp' or 'safetensors'",
        ),
        ({"model": "dall-e-3"}, openai.NotFoundError, "model", "model must be 'mini', got 'dall-e-3'"),
        ({"alpha": 2}, openai.BadRequestError, "alpha", "alpha must be less than or equal to 1, got 2"),
        ({"temperature": 1e-9}, openai.BadRequestError, "temperature", "temperature must be 0 (greedy) or at least"),
        ({"candidate_layers": [2, 8]}, openai.BadRequestError, "candidate_layers", "must lie in 1 .. 7, got [2, 8]"),
        ({"premature_layer": 8}, openai.BadRequestError, "premature_layer", "must lie in 1 .. 7, or be"),
        ({"premature_layer": "x"}, openai.BadRequestError, "premature_layer", "or be 'final', got 'x'"),
        ({"lens": "/etc/passwd"}, openai.BadRequestError, "lens", "lens must be null or \"auto\", got '/etc/passwd'"),
        (
            {"lens": "auto", "premature_layer": 5},
            openai.BadRequestError,
            "lens",
            "is for the layers 2, 4, 6, not for 5",
        ),
        ({"partial_images": 1}, openai.BadRequestError, "partial_images", "must be 0 without stream, got 1"),
        ({"colour": "red"}, openai.BadRequestError, "colour", "colour is not known to this server"),
        ({"seed": -2}, openai.BadRequestError, "seed", "seed must be greater than or equal to -1, got -2"),
    ],
)
def test_each_error_names_argument_value_and_what_is_allowed(server, fields, error, param, message):
    with pytest.raises(error) as caught:
        server.client.images.generate(**{"prompt": "a red circle", "extra_body": fields})
    assert caught.value.param == param
    assert message in caught.value.body["message"]


def test_bodies_that_are_not_json_or_too_large_are_refused(server):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for body, status in [(b"{", 400), (b"[" * 60_000, 400), (b'{"\\ud800": 1}', 400), (b"x" * 70_000, 413)]:
        answer = httpx.post(server.url + GENERATIONS, content=body, headers=headers)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_key_is_asked_for(server):
    with pytest.raises(openai.AuthenticationError, match="asks for its API key"):
        server.client.with_options(api_key="another").models.list()
    assert [model.id for model in server.client.models.list()] == ["mini"]
    assert httpx.get(f"{server.url}/metrics").status_code == 401


def test_an_address_serves_the_image_to_who_knows_it(server):
    answer = server.client.images.generate(
        prompt="a red circle", response_format="url", output_format="jpeg", extra_body={"seed": 1}
    )
    plain = server.client.images.generate(prompt="a red circle", output_format="jpeg", extra_body={"seed": 1})
    actual = httpx.get(answer.data[0].url)
    assert (actual.content, actual.headers["content-type"]) == (content(plain.data[0]), "image/jpeg")
    assert actual.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(answer.data[0].url[:-8] + "xxxx.jpg").status_code == 404


LOOKS = [
    ({"seed": 1}, []),
    ({"seed": 2, "dola": False, "temperature": 0.5}, ["--no-dola", "--temperature", 0.5]),
    ({"seed": 3, "candidate_layers": [1, 5]}, ["--candidate-layers", "1,5"]),
    ({"seed": 4, "premature_layer": 4, "alpha": 0.3}, ["--premature-layer", 4, "--alpha", 0.3]),
    (
        {"seed": 5, "lens": "auto", "premature_layer": 2, "beta": 0.5},
        ["--lens", "auto", "--premature-layer", 2, "--beta", 0.5],
    ),
]


def test_files_are_those_of_generate_alone_and_among_others(server, mini, tmp_path, monkeypatch, capsys, one_rounding):
    monkeypatch.setattr(JanusDoLa, "from_pretrained", classmethod(lambda cls, *args, **kwargs: mini))
    expected = []
    for fields, options in LOOKS:
        arguments = ["generate", "a red circle", "--seed", fields["seed"], *options, "--outdir", tmp_path]
        monkeypatch.setattr(sys, "argv", ["janus-dola", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run(cli.app)
        assert not ended.value.code
        expected.append(Path(capsys.readouterr().out.strip()).read_bytes())
    alone = [server.client.images.generate(prompt="a red circle", extra_body=fields) for fields, _ in LOOKS]
    assert [content(answer.data[0]) for answer in alone] == expected

    async def among_others():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
        draws = random.Random(7)

        async def one(fields):
            await asyncio.sleep(draws.random() * 2)
            return await client.images.generate(prompt="a red circle", extra_body=fields)

        async def other(seed):
            await asyncio.sleep(draws.random() * 2)
            look = {"cfg_weight": draws.uniform(1, 8), "temperature": draws.random()}
            kind = draws.choice(
                [{"alpha": draws.random()}, {"dola": False}, {"contrast": None}, {"premature_layer": 7}]
            )
            await client.images.generate(prompt="a blue square on grey", extra_body={"seed": seed, **look, **kind})

        others = [other(seed) for seed in range(20)]
        async with client:
            return (await asyncio.gather(*(one(fields) for fields, _ in LOOKS), *others))[: len(LOOKS)]

    assert [content(answer.data[0]) for answer in asyncio.run(among_others())] == expected


def test_clients_that_hang_up_free_their_slots(server):
    drawn = metric(server.url, "janus_images_total")
    headers = {"Authorization": f"Bearer {KEY}"}

    async def hang_up(client, k):
        stream = {"stream": True, "partial_images": 1} if k % 2 else {}
        request = client.post(GENERATIONS, json={"prompt": "a red circle", "n": 5, **stream}, timeout=60)
        await asyncio.wait_for(request, 0.4)

    async def all_of_them():
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=server.url, headers=headers, limits=limits) as client:
            return await asyncio.gather(*(hang_up(client, k) for k in range(50)), return_exceptions=True)

    assert sum(isinstance(ended, asyncio.TimeoutError) for ended in asyncio.run(all_of_them())) > 40
    until(lambda: metric(server.url, "janus_queue_length") == metric(server.url, "janus_slots_in_use") == 0, 10)
    assert metric(server.url, "janus_images_total") - drawn < 125  # of 250
    server.client.images.generate(prompt="a red circle")


def test_sigterm_finishes_what_was_asked_and_takes_no_more(processes):
    server, answers = processes[1], []
    threads = [
        threading.Thread(target=lambda: answers.append(server.client.images.generate(prompt="a red circle", n=4).data))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    until(lambda: metric(server.url, "janus_queue_length") >= 8)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(openai.APIConnectionError):
        server.client.images.generate(prompt="a red circle")
    for thread in threads:
        thread.join(60)
    assert [len(images) for images in answers] == [4, 4, 4]
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.process.stderr.read()


def test_a_full_queue_says_when_to_come_back(mini):
    service = Service(ServerOptions("mini", slots=1, max_waiting=10), lambda: mini)
    with running(service) as url:
        until(lambda: service.ready())
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.images.generate(prompt="a red circle", n=10, stream=True)
        with pytest.raises(openai.RateLimitError, match="images are in hand already, and at most 10 may be") as caught:
            client.images.generate(prompt="a red circle", n=10)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        stream.close()
        until(lambda: not len(service.ready()[1].queue))
        assert len(client.images.generate(prompt="a red circle", n=10).data) == 10


def test_an_image_that_is_not_finite_fails_its_request_alone(mini, monkeypatch, caplog):
    service = Service(ServerOptions("mini"), lambda: mini)
    with running(service) as url:
        until(lambda: service.ready())
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with monkeypatch.context() as patch:
            patch.setattr("janus_dola.serve.engine_thread.start_pixels", lambda image_model, tokens: lambda: None)
            with pytest.raises(openai.InternalServerError, match="became NaN or infinite"):
                client.images.generate(prompt="a red circle")
            with pytest.raises(openai.APIError, match="became NaN or infinite"):
                list(client.images.generate(prompt="a red circle", stream=True))
        assert client.images.generate(prompt="a red circle").data
    assert "Traceback" not in caplog.text


def test_health_says_loading_till_the_model_is_there(mini):
    there = threading.Event()
    service = Service(ServerOptions("mini", allow_origin=["https://example.org"]), lambda: there.wait() and mini)
    with running(service) as url:
        assert (httpx.get(f"{url}/health").status_code, httpx.get(f"{url}/health").json()) == (
            503,
            {"status": "loading"},
        )
        answer = httpx.post(url + GENERATIONS, json={"prompt": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        there.set()
        until(lambda: httpx.get(f"{url}/health").json() == {"status": "ready"})
        theirs = httpx.get(f"{url}/health", headers={"Origin": "https://example.org"}).headers
        others = httpx.get(f"{url}/health", headers={"Origin": "https://example.com"}).headers
        assert theirs["access-control-allow-origin"] == "https://example.org"
        assert "access-control-allow-origin" not in others


def test_a_server_ends_though_its_model_is_being_loaded(mini):
    there = threading.Event()
    service = Service(ServerOptions("mini"), lambda: there.wait() and mini)
    with running(service) as url:
        assert httpx.get(f"{url}/health").status_code == 503
    there.set()
    service._thread.join(10)
    assert service.ready() is None


def test_no_garbage_is_an_error_of_the_server(mini):
    service = Service(ServerOptions("mini"), lambda: mini)
    with running(service) as url:
        until(lambda: service.ready())
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")

        for operation in schema.get_all_operations():

            @given(case=operation.ok().as_strategy())
            @settings(max_examples=20, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
            def fuzz(case):
                answer = case.call(timeout=30)
                assert answer.status_code < 500
                assert answer.status_code < 400 or json.loads(answer.content)["error"]["message"]

            fuzz()


def serve(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["janus-dola", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(cli.app)
    return ended.value.code, capsys.readouterr().err


def test_a_model_that_is_not_there_ends_the_server_with_one_line(monkeypatch, capsys, tmp_path):
    code, err = serve(monkeypatch, capsys, "--model", str(tmp_path / "nothing"), "--port", "0")
    assert code == 2
    assert str(tmp_path / "nothing") in err.splitlines()[-1]
    assert "error: " in err.splitlines()[-1]


def test_an_open_address_without_a_key_is_warned_of(monkeypatch, capsys):
    monkeypatch.setattr("janus_dola.serve.server.run_server", lambda *args: None)
    for host, arguments, warned in [
        ("0.0.0.0", [], True),
        ("example.org", [], True),
        ("0.0.0.0", ["--api-key", "x"], False),
        ("127.0.0.1", [], False),
        ("::1", [], False),
        ("localhost", [], False),
    ]:
        _, err = serve(monkeypatch, capsys, "--host", host, *arguments)
        assert (f"warning: anybody who reaches {host} can draw" in err) == warned
    assert serve(monkeypatch, capsys, "--slots", "0")[0] == 2
