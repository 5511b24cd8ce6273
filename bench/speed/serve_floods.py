"""Puts a server under floods of one client, and says how long an honest one waits beside each, and beside half requests.

OMP_NUM_THREADS=1 python -m bench.speed.serve_floods --tries 21 --half-open 2000
OMP_NUM_THREADS=1 python -m bench.speed.serve_floods --only "16 partial pictures"

The honest client has an address of its own, 127.0.0.2, and asks for one image after the other; a flood is a process of its
own. "Processor" is the time that the server's process computed meanwhile, which says more than the clock where other
programs run.
"""

import asyncio
import itertools
import multiprocessing
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from bench.speed.serve_load import serving

GENERATIONS = "/v1/images/generations"
_LAYERS = [[layer for layer in range(1, 8) if bits >> layer & 1] for bits in range(2, 256, 2)]
# Clients, and what each asks for; they try again at once when they are refused.
FLOODS: dict[str, tuple[int, Callable[[], dict]]] = {
    "one image each": (24, dict),
    "127 sets of layers": (24, lambda: {"candidate_layers": random.choice(_LAYERS)}),
    "16 partial pictures": (24, lambda: {"stream": True, "partial_images": 16}),
    "10 images each": (24, lambda: {"n": 10}),
    "300 clients": (300, dict),
}
_HEAD = f"POST {GENERATIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode()
_HALVES = (b"", _HEAD, _HEAD + b'Content-Length: 1000\r\n\r\n{"prompt"')


def processor_seconds(process: int) -> float:
    """Returns how long a process has computed."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def honest(url: str, process: int, tries: int, seconds: float = 0.0) -> tuple[list[float], list[float], int]:
    """Returns the seconds and the server's processor seconds of each image, and how often there was none.

    There are as many tries, or more until the seconds are over.
    """
    clock, processor, refused, end = list[float](), list[float](), 0, time.perf_counter() + seconds
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=url, transport=transport, timeout=300) as client:
        while len(clock) < tries or time.perf_counter() < end:
            began, computed = time.perf_counter(), processor_seconds(process)
            answer = client.post(GENERATIONS, json={"prompt": "a red circle"})
            refused += answer.status_code != 200
            clock.append(time.perf_counter() - began)
            processor.append(processor_seconds(process) - computed)
    return clock, processor, refused


async def flood(url: str, name: str, answers: Counter[object]) -> None:
    """Asks for images until it is cancelled, and counts the answers by status."""
    clients, fields = FLOODS[name]
    numbers = itertools.count()

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            body = {"prompt": "a blue square on grey", "seed": next(numbers), **fields()}
            try:
                answers[(await client.post(GENERATIONS, json=body)).status_code] += 1
            except httpx.HTTPError as error:
                answers[type(error).__name__] += 1
            await asyncio.sleep(0.05)

    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=clients)) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))


async def half_open(url: str, connections: int, ends: Counter[object]) -> None:
    """Keeps connections open that bring half a request or nothing, and opens those anew that the server closes."""
    host, port = url.removeprefix("http://").split(":")

    async def hold(half: bytes) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(half)
                await reader.read()
                writer.close()
                ends["closed"] += 1
            except OSError as error:
                ends[type(error).__name__] += 1
                await asyncio.sleep(0.2)

    await asyncio.gather(*(hold(_HALVES[k % len(_HALVES)]) for k in range(connections)))


@contextmanager
def beside(attack: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> Iterator[None]:
    """Runs an attack in a process of its own, and prints what came of it."""
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    process = context.Process(target=_attack, args=(ended, attack, *arguments))
    process.start()
    time.sleep(1.5)
    try:
        yield
    finally:
        ended.set()
        process.join()


def _attack(ended: Any, attack: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    async def run() -> None:
        counts: Counter[object] = Counter()
        attacking = asyncio.ensure_future(attack(*arguments, counts))
        await asyncio.to_thread(ended.wait)
        attacking.cancel()
        await asyncio.gather(attacking, return_exceptions=True)
        print(" " * 20, "the others:", dict(counts), flush=True)

    asyncio.run(run())


def main(
    tries: Annotated[int, typer.Option(help="Images that the honest client asks for beside each flood.")] = 21,
    only: Annotated[list[str] | None, typer.Option(help="Floods; all by default.")] = None,
    half_open_connections: Annotated[int, typer.Option("--half-open", help="Half-open connections; 0: none.")] = 0,
    half_seconds: Annotated[float, typer.Option(help="Seconds for which they are held.")] = 120.0,
) -> None:
    """Start a server of the mini model on a free port, and print how long an honest client waits."""
    with serving() as (url, process):
        honest(url, process, 3)  # a warm-up
        alone: list[float] = []

        def line(name: str, seconds: float = 0.0) -> None:
            clock, processor, refused = honest(url, process, tries, seconds)
            p50 = [statistics.median(clock), statistics.median(processor)]
            alone[:] = alone or p50
            times = [
                f"{here:6.2f} s ({here / max(before, 0.01):4.1f} x)" for here, before in zip(p50, alone, strict=True)
            ]
            ends = f"longest {max(clock):6.2f} s  {len(clock)} asked, {refused} refused"
            print(f"{name:20} p50 {times[0]}  processor {times[1]}  {ends}", flush=True)

        line("alone")
        for name in FLOODS if only is None else only:
            with beside(flood, url, name):
                line(name)
        if half_open_connections:
            with beside(half_open, url, half_open_connections):
                line(f"{half_open_connections} half open", half_seconds)


if __name__ == "__main__":
    typer.run(main)
