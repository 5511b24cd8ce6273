"""Puts a server under floods of one client, and says how long an honest one waits beside each, and beside half requests.

OMP_NUM_THREADS=1 python -m bench.speed.serve_floods --seconds 28 --half-open 2000

The honest client has an address of its own, 127.0.0.2, and asks for one image after the other. "Processor" is the time that
the server's process computed meanwhile, which says more than the clock where other programs run.
"""

import asyncio
import itertools
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
import typer

from bench.speed.serve_load import serving

GENERATIONS = "/v1/images/generations"
_LAYERS = [[layer for layer in range(1, 8) if bits >> layer & 1] for bits in range(2, 256, 2)]
# Clients, and what each asks for; 300 try again at once when they are refused.
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


async def honest(url: str, process: int, seconds: float, most: int = 1000) -> tuple[list[float], list[float], int]:
    """Returns the seconds and the server's processor seconds of each image, and how often there was none."""
    clock, processor, refused, end = list[float](), list[float](), 0, time.perf_counter() + seconds
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=url, transport=transport, timeout=300) as client:
        while time.perf_counter() < end and len(clock) + refused < most:
            began, computed = time.perf_counter(), processor_seconds(process)
            answer = await client.post(GENERATIONS, json={"prompt": "a red circle"})
            refused += answer.status_code != 200
            clock.append(time.perf_counter() - began)
            processor.append(processor_seconds(process) - computed)
    return clock, processor, refused


async def flood(url: str, clients: int, fields: Callable[[], dict], answers: Counter[object]) -> None:
    """Asks for images until it is cancelled, and counts the answers by status."""
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


async def half_open(url: str, connections: int) -> None:
    """Keeps connections open that bring half a request or nothing, and opens those anew that the server closes."""
    host, port = url.removeprefix("http://").split(":")

    async def hold(half: bytes) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(half)
                await reader.read()
                writer.close()
            except OSError:
                await asyncio.sleep(0.2)

    await asyncio.gather(*(hold(_HALVES[k % len(_HALVES)]) for k in range(connections)))


async def measure(url: str, process: int, seconds: float, half: int, half_seconds: float) -> None:
    """Prints a line for the honest client alone and beside each flood."""
    await honest(url, process, 2.0)  # a warm-up
    alone: list[float] = []

    async def line(name: str, seconds: float, beside: asyncio.Future | None, most: int = 1000) -> None:
        await asyncio.sleep(1.5 if beside else 0.0)
        clock, processor, refused = await honest(url, process, seconds, most)
        if beside:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
        p50 = [statistics.median(clock), statistics.median(processor)]
        alone[:] = alone or p50
        times = [f"{here:6.2f} s ({here / max(before, 0.01):4.1f} x)" for here, before in zip(p50, alone, strict=True)]
        ends = f"longest {max(clock):6.2f} s  {len(clock)} asked, {refused} refused"
        print(f"{name:20} p50 {times[0]}  processor {times[1]}  {ends}", flush=True)

    await line("alone", seconds / 2, None)
    for name, (clients, fields) in FLOODS.items():
        answers: Counter[object] = Counter()
        beside = asyncio.ensure_future(flood(url, clients, fields, answers))
        await line(name, seconds, beside, 21 if clients > 100 else 1000)
        print(" " * 20, "the others:", dict(answers), flush=True)
    if half:
        await line(f"{half} half open", half_seconds, asyncio.ensure_future(half_open(url, half)))


def main(
    seconds: Annotated[float, typer.Option(help="Seconds for each flood.")] = 28.0,
    half_open: Annotated[int, typer.Option(help="Half-open connections; 0 for none.")] = 2000,
    half_seconds: Annotated[float, typer.Option(help="Seconds for which they are held.")] = 120.0,
) -> None:
    """Start a server of the mini model on a free port, and print how long an honest client waits."""
    with serving() as (url, process):
        asyncio.run(measure(url, process, seconds, half_open, half_seconds))


if __name__ == "__main__":
    typer.run(main)
