"""What clients that people have send to `janus-dola serve`, and what they get."""

import asyncio
import base64
import contextlib
import gc
import io
import json
import logging
import os
import signal
import threading
import time

import httpx
import openai
import pytest
from PIL import Image

from janus_dola.images.recipe import encode_image, read_recipe
from janus_dola.serve import api
from janus_dola.serve.access import digest
from janus_dola.serve.api import GENERATIONS, make_app
from janus_dola.serve.queue import FullError
from janus_dola.serve.server import run_server
from janus_dola.serve.service import ServerOptions, Service
from janus_dola.serve.signals import STOPS, on_signals
from tests.janus_dola.server import running, until

ORIGIN = "https://example.org"
DRAWN = {"prompt": "a red circle", "seed": 3}


@contextlib.contextmanager
def ready(mini, **options):
    service = Service(ServerOptions(**{"model": "mini", **options}), lambda: mini)
    with running(service) as url:
        until(lambda: service.ready())
        yield url


@pytest.fixture(scope="module")
def url(mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret") / "Janus-mini"
    folder.mkdir()
    with ready(mini, model=str(folder), allow_origin=[ORIGIN], forwarded_allow_ips="127.0.0.1") as url:
        yield url


@pytest.fixture(scope="module")
def named(mini):
    """A server whose model has several names, behind a proxy's path."""
    with ready(mini, names=("gpt-image-1", "deepseek-ai/Janus-Pro-1B", "dall-e-3"), root_path="/janus") as url:
        yield url


@pytest.fixture(scope="module")
def plain(url):
    return post(url, DRAWN).json()["data"][0]


def post(url, body, path=GENERATIONS, **more):
    return httpx.post(url + path, json=body, timeout=60, **more)


def error_of(answer):
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


# What programs send, beside a prompt; taken from their source or seen from themselves.
BODIES = {
    "LibreChat": {
        "model": "gpt-image-1", "n": 1, "background": "auto", "output_format": "png", "quality": "auto", "size": "auto",
    },
    "LiteLLM": {"model": "gpt-image-1", "quality": "medium", "size": "auto"},
    "Open WebUI": {"model": "dall-e-3", "n": 1, "size": "64x64", "response_format": "b64_json"},
    "n8n": {"n": 1, "quality": "hd", "style": "natural", "response_format": "b64_json", "size": "64x64"},
    "OpenAI's defaults": {
        "n": 1, "quality": "auto", "moderation": "auto", "output_compression": 100, "partial_images": 0, "stream": False,
    },
    "the answer itself": {"quality": "auto", "background": "opaque", "output_format": "png", "size": "64x64"},
    "newest": {"quality": "xhigh", "complexity": "high", "safety_identifier": "ab", "moderation": "low", "user": "x"},
    "the server's own defaults": {"dola": True, "alpha": 0.1, "candidate_layers": "auto", "cfg_weight": 5, "top_k": 0},
}  # fmt: skip
BODIES["nulls"] = dict.fromkeys(
    {name for body in BODIES.values() for name in body}
    | {"model", "premature_layer", "layer_map", "temperature", "negative_prompt", "frame_count", "svg", "mask"}
)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_fields_of_openai_that_mean_nothing_here_change_nothing(named, plain, body):
    answer = post(named, {**DRAWN, **body})
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == [plain]
    assert answer.json()["model"] == "gpt-image-1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"background": "transparent"}, "background must be 'auto' or 'opaque', got 'transparent'"),
        ({"quality": "best"}, "'standard' or 'hd', got 'best'"),
        ({"style": "anime"}, "style must be 'vivid' or 'natural', got 'anime'"),
        ({"moderation": "none"}, "moderation must be 'auto' or 'low', got 'none'"),
        ({"output_compression": 101}, "output_compression must be less than or equal to 100, got 101"),
        ({"output_format": "gif"}, "output_format must be 'png', 'jpeg', 'webp' or 'safetensors', got 'gif'"),
        ({"frame_count": 4}, "frame_count is not known to this server: leave it out"),
        ({"prompt": None}, "prompt must be given"),
        ({"seed": -2}, "seed must be greater than or equal to -1, got -2"),
        ({"model": "x" * 60_000}, "model must be 'Janus-mini', got 'xxx"),
        ({"size": "9" * 60_000}, 'size must be "auto" or "64x64", which the model draws, got \'999'),
        (
            {"output_format": "jpeg", "candidate_layers": [1] * 30_000},
            "output_format must be 'png' or 'webp': EXIF data is too long",
        ),
    ],
)
def test_values_that_openai_does_not_know_or_nobody_can_draw_are_errors(url, fields, message):
    answer = post(url, {**DRAWN, **fields})
    assert answer.status_code == (404 if "model" in fields else 400)
    assert message in error_of(answer)
    assert len(error_of(answer)) < 300


def test_the_seed_minus_one_is_random_and_null_is_plain_decoding_for_the_contrast_alone(url):
    body = {"prompt": "a red circle", "seed": -1, "contrast": None, "premature_layer": None, "cfg_weight": None}
    first, second = (post(url, body).json()["data"][0] for _ in range(2))
    assert 0 <= first["seed"] != second["seed"] >= 0
    assert (first["settings"]["contrast"], first["settings"]["cfg_weight"]) == (None, 5)
    again = post(url, {**body, "seed": first["seed"]}).json()["data"][0]
    assert again == first


def test_compression_is_the_quality_of_a_jpeg_or_webp(url, plain, tmp_path):
    (tmp_path / "image.png").write_bytes(base64.b64decode(plain["b64_json"]))
    picture, recipe = Image.open(tmp_path / "image.png").convert("RGB"), read_recipe(tmp_path / "image.png")
    sizes = {}
    for name, image_format in (("jpeg", "jpg"), ("webp", "webp")):
        answer = post(url, {**DRAWN, "output_format": name, "output_compression": 30}).json()["data"][0]["b64_json"]
        files = {quality: encode_image(picture, image_format, recipe, quality) for quality in (0, 30, 90, 100, None)}
        assert base64.b64decode(answer) == files[30]
        sizes[name] = [len(files[quality]) for quality in (0, 30, 90, 100)]
        assert sizes[name] == sorted(set(sizes[name]))
    assert Image.open(io.BytesIO(files[100])).tobytes() == picture.tobytes()


def test_the_model_is_called_by_the_name_of_its_folder_never_its_path(url):
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["Janus-mini"]
    assert post(url, {**DRAWN, "model": "Janus-mini"}).status_code == 200
    refused = post(url, {**DRAWN, "model": "gpt-image-1"})
    texts = [
        refused.text,
        *(httpx.get(url + path).text for path in ("/", "/v1/models", "/openapi.json", "/v1/models/x")),
    ]
    assert error_of(refused) == "model must be 'Janus-mini', got 'gpt-image-1'"
    assert not any("secret" in text for text in texts)


def test_a_model_has_the_names_it_is_given(named):
    client = openai.OpenAI(base_url=f"{named}/v1", api_key="none", max_retries=0)
    names = ["gpt-image-1", "deepseek-ai/Janus-Pro-1B", "dall-e-3"]
    assert [model.id for model in client.models.list()] == names
    assert [client.models.retrieve(name).id for name in names] == names
    for name in names:
        assert client.images.generate(prompt="a red circle", model=name).model == names[0]
    for path in (names[1], names[1].replace("/", "%2F"), names[1] + "/"):
        assert httpx.get(f"{named}/v1/models/{path}").json()["id"] == names[1]
    for name in ("mini", "Janus-Pro-1B", "gpt-image-1/x", "../models"):
        answer = httpx.get(f"{named}/v1/models/{name.replace('.', '%2e')}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    with pytest.raises(openai.NotFoundError, match="model must be 'gpt-image-1' or .* or 'dall-e-3', got 'mini'"):
        client.images.generate(prompt="a red circle", model="mini")
    for path in ("", "/", "/janus", "/janus/"):
        page = httpx.get(named + path).text
        assert '"model": "gpt-image-1"' in page
        assert '"root": "/janus/"' in page
    assert 'janus_model_info{name="gpt-image-1"} 1.0' in httpx.get(f"{named}/metrics").text


def test_the_command_line_takes_several_names(call, monkeypatch):
    seen = []
    monkeypatch.setattr("janus_dola.serve.server.run_server", lambda options, *rest: seen.append(options))
    for arguments, names in [
        ([], ("mini",)),
        (["--served-model-name", "a", "b/c", "--port", "0", "--root_path=/janus/"], ("a", "b/c")),
        (["--served_model_name=a", "b", "--allow-origin", "https://x.org", "https://y.org"], ("a", "b")),
        (["--served-model-name", "a", "--served-model-name", "b", "c", "a", "--root-path", "/"], ("a", "b", "c")),
    ]:
        assert call("serve", *arguments)[0] == 0
        assert tuple(seen[-1].served_names) == names
    assert [each.root_path for each in seen] == ["", "/janus", "", ""]
    assert seen[2].allow_origin == ("https://x.org", "https://y.org")
    for arguments in (["--root-path", "janus"], ["--served-model-name", ""], ["--served-model-name"], ["a"]):
        assert call("serve", *arguments)[0] == 2
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/images/generations", 404, "but /v1/images/generations: the client's base URL must be"),
        ("POST", "/v1/v1/images/generations", 404, "but /v1/images/generations: the client's base URL must be"),
        ("POST", "/openai/images/generations", 404, "but /v1/images/generations: the client's base URL must be"),
        ("GET", "/models", 404, "but /v1/models: the client's base URL must be"),
        ("GET", "/models/mini", 404, "but /v1/models/mini: the client's base URL must be"),
        ("POST", "/v1/images/edits", 404, "there is no POST /v1/images/edits here: this server only draws images from"),
        ("POST", "/v1/images/variations", 404, "and has POST /v1/images/generations, GET /v1/models, GET"),
        ("POST", "/v1/chat/completions", 404, "and has POST /v1/images/generations, GET /v1/models, GET"),
        ("POST", "/v1/completions", 404, "only draws images from text"),
        ("POST", "/v1/responses", 404, "only draws images from text"),
        ("POST", "/v1/embeddings", 404, "only draws images from text"),
        ("GET", "/" + "x" * 5000, 404, "only draws images from text"),
        ("GET", GENERATIONS, 405, f"there is no GET {GENERATIONS} here"),
        ("PUT", GENERATIONS, 405, "and has POST /v1/images/generations"),
        ("DELETE", "/v1/models/mini", 405, "there is no DELETE /v1/models/mini here"),
        ("POST", "/health", 405, "there is no POST /health here"),
    ],
)  # fmt: skip
def test_other_routes_are_answered_with_what_there_is(url, method, path, status, message):
    answer = httpx.request(method, url + path, json={}, headers={"Origin": ORIGIN})
    assert answer.status_code == status
    assert message in error_of(answer)
    assert len(error_of(answer)) < 400
    assert answer.headers.get("allow") == {404: None, 405: "POST" if path == GENERATIONS else "GET, HEAD"}[status]
    assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_must_say_that_it_is_json(url, kind):
    headers = {"Origin": ORIGIN} | ({} if kind is None else {"Content-Type": kind})
    answer = httpx.post(url + GENERATIONS, content=b'{"prompt": "a red circle"}', headers=headers)
    assert answer.status_code == 415
    assert f"the request must have Content-Type: application/json, got {kind or ''!r}" in error_of(answer)
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    headers["Content-Type"] = "Application/JSON; charset=utf-8"
    assert error_of(httpx.post(url + GENERATIONS, headers=headers)) == "the body must be a JSON object, got nothing"


def test_head_is_as_get_without_the_body(url):
    image = post(url, {**DRAWN, "response_format": "url"}).json()["data"][0]["url"]
    for address in (image, *(url + path for path in ("/", "/health", "/v1/models", "/v1/models/Janus-mini", "/none"))):
        head, got = httpx.head(address), httpx.get(address)
        assert head.status_code == got.status_code == (404 if address.endswith("/none") else 200)
        assert head.content == b""
        changing = {"date"}
        assert {k: v for k, v in head.headers.items() if k not in changing} == {
            k: v for k, v in got.headers.items() if k not in changing
        }
    assert httpx.head(url + GENERATIONS).status_code == 405


def test_errors_can_be_read_by_pages_that_may_ask(mini, monkeypatch):
    def broken(*args):
        raise KeyError("unforeseen")

    def full(*args):
        raise FullError("full")

    with ready(mini, allow_origin=[ORIGIN], keys=(digest("k"),), max_waiting=10) as url:
        headers = {"Origin": ORIGIN, "Authorization": "Bearer k"}
        answers = [httpx.get(f"{url}/v1/models", headers={"Origin": ORIGIN})]
        answers += [post(url, body, headers=headers) for body in ({"prompt": "x" * 70_000}, {"n": 0}, {"prompt": ""})]
        with monkeypatch.context() as patch:
            patch.setattr("janus_dola.serve.requests.Reader.read", broken)
            answers.append(post(url, DRAWN, headers=headers))
        with monkeypatch.context() as patch:
            patch.setattr("janus_dola.serve.queue.FairQueue.check", full)
            answers.append(post(url, {"n": 0}, headers=headers))  # refused before it is looked at
        counts = httpx.get(f"{url}/metrics", headers=headers).text
    assert [answer.status_code for answer in answers] == [401, 413, 400, 400, 500, 429]
    assert {answer.headers.get("access-control-allow-origin") for answer in answers} == {ORIGIN}
    assert 'janus_requests_total{status="500"} 1.0' in counts


@pytest.mark.parametrize("stream", [False, True])
def test_images_are_in_hand_until_their_client_has_read_them(mini, stream):
    service = Service(ServerOptions("mini", max_waiting=10), lambda: mini)
    app, body = make_app(service), json.dumps({**DRAWN, "n": 3, "stream": stream}).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": GENERATIONS, "headers": headers, "query_string": b""}
    sent = []

    async def ask():
        brought, reads = asyncio.Event(), asyncio.Event()

        async def receive():
            if brought.is_set():
                await asyncio.Event().wait()
            brought.set()
            return {"type": "http.request", "body": body}

        async def send(message):
            await reads.wait()
            sent.append(message)

        answering = asyncio.ensure_future(app(scope, receive, send))
        while service.metrics.images._value.get() < 3:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        with pytest.raises(FullError, match="3 images are in hand already, and at most 10 may be"):
            service.ready()[1].queue.check("another", 8)
        reads.set()
        await answering
        service.ready()[1].queue.check("another", 10)

    service.start()
    until(lambda: service.ready())
    asyncio.run(ask())
    service.close()
    assert b"".join(message.get("body", b"") for message in sent).count(b"b64_json") == 3


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pics.example.org", "X-Forwarded-Prefix": "/janus"}


@pytest.mark.parametrize(
    ("headers", "start"),
    [
        ({}, "{url}/"),
        (FORWARDED, "https://pics.example.org/janus/"),
        ({"X-Forwarded-Prefix": "/a/, /b"}, "{url}/a/b/"),
        ({"X-Forwarded-Host": "[::1]:80, other"}, "http://[::1]:80/"),
        ({"X-Forwarded-Host": "a b/c", "X-Forwarded-Prefix": "//x<"}, "{url}/"),
    ],
)
def test_urls_are_those_of_the_proxy_in_front(url, headers, start):
    image = post(url, {**DRAWN, "response_format": "url"}, headers=headers).json()["data"][0]["url"]
    assert image.startswith(start.format(url=url) + "images/")
    prefix = headers.get("X-Forwarded-Prefix", "")
    path = "/images/" + image.rpartition("/")[2]
    if prefix == "/janus":  # whether or not the proxy takes the prefix away
        assert httpx.get(url + prefix + path, headers=headers).status_code == 200
    assert httpx.get(url + path, headers=headers).status_code == 200


def test_a_prefix_is_no_way_round_the_key_and_comes_from_trusted_proxies_alone(named, mini):
    assert (
        post(named, {**DRAWN, "response_format": "url"}).json()["data"][0]["url"].startswith(f"{named}/janus/images/")
    )
    for path in ("/janus/v1/models", "/janus/janus/v1/models/", "/v1/models"):
        assert httpx.get(named + path).status_code == 200
    with ready(mini, keys=(digest("k"),), root_path="/janus") as url:
        for path in ("/janus/v1/models", "/janus/janus/v1/models", "/v1/models/", "/x/v1/models"):
            answer = httpx.get(url + path, headers={"X-Forwarded-Prefix": "/x"})
            assert answer.status_code == 401
        keyed = {"Authorization": "Bearer k", **FORWARDED}
        image = post(url, {**DRAWN, "response_format": "url"}, headers=keyed).json()["data"][0]["url"]
        assert image.startswith(f"{url}/janus/images/")
    with ready(mini, keys=(digest("k"),), forwarded_allow_ips="127.0.0.1") as url:
        for prefix in ("/x", "/v1", "/v1/models", "/janus,/janus"):
            for path in ("/v1/models", "/v1/v1/models", "/x/v1/models", "/x/x/v1/models", "/janus/janus/v1/models"):
                answer = httpx.get(url + path, headers={"X-Forwarded-Prefix": prefix})
                assert answer.status_code == 401 or "<html" in answer.text


def test_a_model_called_dall_e_is_answered_with_urls_as_its_wrappers_expect(named):
    langchain = {"model": "dall-e-3", "n": 1, "quality": "standard", "size": "auto"}
    sent = [langchain, {**langchain, "response_format": "b64_json"}, {**langchain, "model": "gpt-image-1"}]
    answers = [post(named, {**DRAWN, **body}).json()["data"][0] for body in sent]
    assert ["url" in answer for answer in answers] == [True, False, False]
    assert ["b64_json" in answer for answer in answers] == [False, True, True]


def test_streams_say_that_they_live_and_clients_read_them(url, monkeypatch):
    monkeypatch.setattr(api, "_HEARTBEAT", 0.001)
    stream = {**DRAWN, "stream": True, "partial_images": 1}
    with httpx.stream("POST", url + GENERATIONS, json=stream, timeout=60) as answer:
        text = answer.read().decode()
        headers = answer.headers
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    assert headers["content-type"].startswith("text/event-stream")
    assert text.startswith(": the images wait or are being drawn\n\n")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    events = client.images.generate(prompt="a red circle", stream=True, partial_images=1)
    assert [event.type for event in events][-1] == "image_generation.completed"


def test_clients_that_leave_streams_leave_nothing_in_the_log(url, caplog):
    async def leave():
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for n in (1, 4):
                body = {**DRAWN, "n": n, "stream": True, "partial_images": 2}
                async with client.stream("POST", GENERATIONS, json=body) as answer:
                    await anext(answer.aiter_raw())

    with caplog.at_level(logging.DEBUG, "asyncio"):
        asyncio.run(leave())
        assert post(url, DRAWN).status_code == 200
        gc.collect()
    assert "Task was destroyed" not in caplog.text


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored():
    heard, before = [], signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with on_signals(STOPS, lambda: heard.append(1)):
            os.kill(os.getpid(), signal.SIGHUP)
            assert heard == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [1]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_that_is_told_to_end_answers_and_ends_quietly(mini, monkeypatch, caplog, number):
    monkeypatch.setattr("janus_dola.serve.engine_thread.SlotRunner.advance", lambda runner: time.sleep(0.01) or [])

    def drawn_or_waiting(url):
        lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith(("janus_slots_in", "janus_queue_l")))

    answers = {}

    def ask(url, stream):
        until(lambda: httpx.get(f"{url}/health", timeout=60).status_code == 200)
        answers[stream] = httpx.post(url + GENERATIONS, json={**DRAWN, "stream": stream}, timeout=60)

    def clients(url):
        asking = [threading.Thread(target=ask, args=(url, stream)) for stream in (False, True)]
        for each in asking:
            each.start()
        try:
            until(lambda: drawn_or_waiting(url) == 2)
            answers["frozen"] = gc.get_freeze_count()
        finally:
            os.kill(os.getpid(), number)

    def announce(line):
        threading.Thread(target=clients, args=(line.split()[0],), daemon=True).start()

    before = signal.signal(number, signal.SIG_DFL)  # nohup has SIGHUP ignored
    try:
        run_server(ServerOptions("mini", port=0, grace=1), lambda: mini, announce)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    until(lambda: len(answers) == 3)
    assert answers["frozen"] > gc.get_freeze_count()
    assert (answers[False].status_code, answers[False].headers["retry-after"]) == (503, "5")
    assert "the server stops" in error_of(answers[False])
    assert "event: error\ndata: " in answers[True].text
    assert "Traceback" not in caplog.text
    assert "was destroyed" not in caplog.text
