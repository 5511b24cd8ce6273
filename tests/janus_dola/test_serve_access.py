"""Who may ask a server, by the headers of a request; nothing is drawn."""

import asyncio
import os

import httpx
import pytest

from janus_dola.cli import serve as command
from janus_dola.serve.access import digest
from janus_dola.serve.api import GENERATIONS, make_app
from janus_dola.serve.service import ServerOptions, Service

LOADING = 503  # the answer of a server without a model to whoever may draw


def status(path, headers, method="GET", **options):
    """The status and the code of the error that a server gives to a request; headers may be pairs."""
    service = Service(ServerOptions("mini", **options), lambda: None)

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(service)), base_url="http://x") as client:
            return await client.request(
                method, path, headers=headers, json={"prompt": "a"} if method == "POST" else None
            )

    try:
        answer = asyncio.run(ask())
    finally:
        service.close()
    error = answer.json().get("error") if answer.headers["content-type"] == "application/json" else None
    return answer.status_code, error and error["code"]


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LocalHost:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "a.localhost"],
)
def test_a_local_server_without_a_key_answers_to_its_own_names(host):
    assert status(GENERATIONS, {"Host": host}, "POST") == (LOADING, "loading")


@pytest.mark.parametrize(
    "path", [GENERATIONS, "/", "/health", "/metrics", "/v1/models", "/images/x.png", "/openapi.json"]
)
@pytest.mark.parametrize(
    "host", ["evil.example:8000", "0.0.0.0", "127.0.0.1.evil.example", "localhost@evil.example", "[::1"]
)
def test_a_local_server_without_a_key_answers_to_no_other_name(path, host):
    assert status(path, {"Host": host}, "POST" if path == GENERATIONS else "GET") == (403, "host_not_allowed")


def test_every_host_that_a_request_names_must_be_known():
    assert status("/health", [("Host", "localhost"), ("Host", "evil.example")]) == (403, "host_not_allowed")


def test_other_names_are_those_that_the_server_was_started_with():
    assert status("/health", {"Host": "pics.example"}, allow_host=["pics.example"])[0] == LOADING
    assert status("/health", {"Host": "pics.example"}, host="0.0.0.0")[0] == LOADING
    assert status("/health", {"Host": "pics.example"}, host="0.0.0.0", allow_host=["other.example"])[0] == 403
    assert status("/health", {"Host": "pics.example"}, keys=(digest("k"),))[0] == LOADING
    assert status("/health", {"Host": "[fd00::1]:8000"}, host="0.0.0.0", allow_host=["[fd00::1]"])[0] == LOADING


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:3000"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://friend.example"}, True),
        ({"Origin": "http://friend.example", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy.example"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_pages_of_other_sites_may_not_draw_without_a_key(headers, allowed):
    headers = {"Host": "127.0.0.1:8000", **headers}
    for host in ("127.0.0.1", "0.0.0.0"):
        answer = status(GENERATIONS, headers, "POST", host=host, allow_origin=["http://friend.example"])
        assert answer == ((LOADING, "loading") if allowed else (403, "origin_not_allowed"))


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("Bearer first", True),
        ("bearer second", True),
        ("Bearer  first ", True),
        ("Bearer third", False),
        ("Bearer", False),
        ("first", False),
        ("Basic first", False),
        ("Bearer first, Bearer x", False),
    ],
)
def test_each_key_of_a_server_opens_it_and_no_other(header, allowed):
    keys = (digest("first"), digest("second"))
    for path in (GENERATIONS, "/v1/models", "/metrics", "/v1x", "/other", "//v1/models"):
        answer = status(path, {"Authorization": header}, "POST" if path == GENERATIONS else "GET", keys=keys)
        assert (answer == (401, "invalid_api_key")) is not allowed, path
    assert status("/health", {}, keys=keys)[0] == LOADING


def test_keys_are_those_of_the_command_line_or_the_lines_of_the_environment(monkeypatch):
    monkeypatch.setenv("JANUS_DOLA_API_KEY", "one key\nanother\n")
    assert command._keys(None) == (digest("one key"), digest("another"))
    assert "JANUS_DOLA_API_KEY" not in os.environ  # processes of Ray do not inherit it
    monkeypatch.setenv("JANUS_DOLA_API_KEY", "one key")
    assert command._keys(["mine"]) == (digest("mine"),)
    assert command._keys(None) == ()


@pytest.mark.parametrize("text", ["", " ", "\n", "\t", "a\n\nb", "schlüssel", "a\rb"])
def test_a_key_that_is_empty_does_not_open_the_server(text, monkeypatch):
    with pytest.raises(ValueError, match="api_key must be printable ASCII, and not empty"):
        command._keys([text])
    monkeypatch.setenv("JANUS_DOLA_API_KEY", text)
    with pytest.raises(ValueError, match="JANUS_DOLA_API_KEY must be printable ASCII, and not empty"):
        command._keys(None)
