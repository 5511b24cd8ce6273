"""How many connections a server keeps, and how long it waits for their requests; nothing is drawn."""

import logging
import resource
import socket
import time
from contextlib import suppress

import httpx
import pytest
import uvicorn

from janus_dola.images.outputs import NonFiniteError
from janus_dola.serve import connections, log
from janus_dola.serve.api import GENERATIONS, failure_text
from janus_dola.serve.engine_thread import FinishedImage, PartialImage
from janus_dola.serve.outbox import Outbox
from janus_dola.serve.service import ServerOptions, Service
from tests.janus_dola.server import running, serving, until

HEAD = f"POST {GENERATIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode()
HALVES = {
    "nothing": b"",
    "half a head": HEAD,
    "half a body": HEAD + b'Content-Length: 1000\r\n\r\n{"prompt"',
    "the rest of a refused body": HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n" + b"x" * 70_000,
}


@pytest.fixture
def url(request, monkeypatch, caplog):
    """A server that loads for ever, with room for `request.param` connections; it waits half a second for requests."""
    monkeypatch.setattr(connections, "SECONDS_TO_ASK", 0.5)
    options = ServerOptions("mini", max_connections=getattr(request, "param", 100), grace=30)
    with caplog.at_level(logging.WARNING), running(Service(options, lambda: None)) as address:
        yield address


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def ends(connection):
    """What a server sends till it closes the connection."""
    received = b""
    try:
        while more := connection.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_is_not_waited_for_long(url, half, caplog):
    with connect(url) as connection:
        connection.sendall(HALVES[half])
        began = time.monotonic()
        received = ends(connection)
    assert 0.3 < time.monotonic() - began < 3
    status = {"half a body": b"HTTP/1.1 408 ", "the rest of a refused body": b"HTTP/1.1 413 "}.get(half, b"")
    assert received.startswith(status)
    assert caplog.text.count("it brought no request within 0.5 s") == 1


def test_a_request_that_comes_byte_by_byte_has_no_longer(url):
    with connect(url) as connection:
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() < began + 10:
                connection.sendall(b"G")
                time.sleep(0.05)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("url", [16], indirect=True)
def test_an_honest_request_is_answered_beside_more_half_ones_than_there_is_room_for(url):
    halves = []
    for k in range(60):
        halves.append(connect(url))
        halves[-1].sendall(list(HALVES.values())[k % 3])
    for _ in range(3):
        began = time.monotonic()
        assert httpx.get(f"{url}/health", timeout=5).status_code == 503
        assert time.monotonic() - began < 2
    for half in halves:
        half.close()


def test_a_head_of_more_than_64_kib_is_refused(url):
    with connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ")
        sent = 0
        with suppress(OSError):
            while sent < 64 * 2**20:
                sent += connection.send(b"x" * 65536)
        assert sent < 32 * 2**20
        assert ends(connection)[:12] in (b"HTTP/1.1 400", b"")


def test_half_a_request_does_not_hold_a_stop():
    with running(Service(ServerOptions("mini", grace=30), lambda: None)) as url:
        connection = connect(url)
        connection.sendall(HALVES["half a body"])
        assert httpx.get(f"{url}/health").status_code == 503
        began = time.monotonic()
    assert time.monotonic() - began < 5
    connection.close()


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_that_is_not_read_is_not_kept_for_long(reads, monkeypatch):
    monkeypatch.setattr(connections, "SECONDS_TO_ASK", 0.5)
    monkeypatch.setattr(connections, "SECONDS_TO_READ", 0.5)
    megabytes = 40

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for k in range(megabytes):
            await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": k + 1 < megabytes})

    config = uvicorn.Config(endless, http=connections.limited(10), lifespan="off")
    with serving(config) as (server, url), connect(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        if reads:  # slowly
            received = 0
            while more := connection.recv(2**19):
                received += len(more)
                time.sleep(0.01)
            assert received > megabytes * 2**20
        else:
            until(lambda: server.server_state.connections, 5)
            until(lambda: not server.server_state.connections, 10)


def test_a_server_may_open_as_many_files_as_its_connections_need(monkeypatch):
    limits = {"soft": 1024, "hard": 8192}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits["soft"], limits["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update(soft=pair[0]))
    assert connections.limited(2048).most == 2048
    assert limits["soft"] == 2 * 2048 + 256
    limits.update(soft=1024, hard=1024)
    assert connections.limited(2048).most == 256
    limits.update(soft=100_000)
    assert connections.limited(2048).most == 2048
    assert limits["soft"] == 100_000


def test_the_log_has_ten_lines_of_a_kind_a_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock[0])
    seldom = log.Seldom()

    def lines(message, number):
        records = [logging.LogRecord("a", logging.ERROR, "", 0, message, (k,), None) for k in range(number)]
        return [record.getMessage() for record in records if seldom.filter(record)]

    assert lines("fault %d", 3) == ["fault 0", "fault 1", "fault 2"]
    assert lines("fault %d", 500)[5:] == ["fault 5", "fault 6 (others like this are left out for 60 s)"]
    assert lines("other %d", 1) == ["other 0"]
    clock[0] = 60.0
    assert lines("fault %d", 1) == ["fault 0"]


def test_an_outbox_keeps_the_newest_partial_picture_of_each_image():
    outbox = Outbox()
    for number in range(16):
        for k in range(3):
            outbox.put_nowait(PartialImage(k, number, None))
    outbox.put_nowait(FinishedImage(1, None, None))
    outbox.put_nowait(PartialImage(2, 16, None))
    kept = [outbox.get_nowait() for _ in range(outbox.qsize())]
    assert [(type(event), event.k) for event in kept] == [
        (PartialImage, 0), (PartialImage, 1), (FinishedImage, 1), (PartialImage, 2),
    ]  # fmt: skip
    assert [kept[k].number for k in (0, 1, 3)] == [15, 15, 16]


def test_faults_of_the_server_are_not_told_to_clients():
    assert (
        failure_text(OSError(24, "Too many open files", "/secret/path")) == "drawing failed; the server's log says why"
    )
    assert "became NaN" in failure_text(NonFiniteError([0]))
