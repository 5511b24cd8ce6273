"""Puts a server under load: seconds per request, images per second beside requests one after the other, and its memory.

OMP_NUM_THREADS=1 python -m bench.speed.serve_load --requests 200 --clients 32 --memory-requests 1000
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer

_COLOURS, _SHAPES = ("red", "green", "blue", "yellow", "purple", "orange"), ("circle", "square", "triangle", "cross")


def body_of(number: int) -> dict:
    """Returns a request of one image; its seed is its number."""
    colour, shape = _COLOURS[number % 6], _SHAPES[number // 6 % 4]
    return {"prompt": f"a {colour} {shape}", "seed": number, "cfg_weight": 3.0 + number % 3, "dola": number % 4 > 0}


async def load(url: str, numbers: Sequence[int], clients: int) -> tuple[dict[int, str], list[float], float]:
    """Returns each request's image and seconds, and the seconds of all, where `clients` clients ask in turn."""
    images: dict[int, str] = {}
    seconds: list[float] = []
    left = iter(numbers)

    async def ask(client: httpx.AsyncClient) -> None:
        for number in left:
            began = time.perf_counter()
            answer = await client.post("/v1/images/generations", json=body_of(number), timeout=300)
            seconds.append(time.perf_counter() - began)
            (image,) = answer.raise_for_status().json()["data"]
            if image["seed"] != number or number in images:
                raise RuntimeError(f"request {number} was answered with the image of seed {image['seed']}, or twice")
            images[number] = image["b64_json"]

    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=clients)) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))
    return images, seconds, time.perf_counter() - began


def resident(process: int) -> float:
    """Returns the memory of a process, MiB."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextmanager
def serving() -> Iterator[tuple[str, int]]:
    """Runs a server of the mini model on a free port; yields its address and its process' number when it can draw."""
    command = [sys.executable, "-m", "janus_dola", "serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = next(line.split()[1] for line in server.stderr if "draws with" in line)
        try:
            while httpx.get(f"{url}/health").status_code != 200:
                time.sleep(0.1)
            yield url, server.pid
        finally:
            server.terminate()


def report_line(name: str, seconds: list[float], whole: float) -> str:
    """Returns a line of the report."""
    cuts = statistics.quantiles(seconds, n=100)
    return f"{name:24} p50 {cuts[49]:6.2f} s  p95 {cuts[94]:6.2f} s  {len(seconds) / whole:6.2f} images/s"


def main(
    requests: Annotated[int, typer.Option(help="Number of requests, each for one image.")] = 200,
    clients: Annotated[int, typer.Option(help="Clients that ask at once.")] = 32,
    memory_requests: Annotated[int, typer.Option(help="Requests for which memory is shown; 0 for none.")] = 1000,
) -> None:
    """Start a server of the mini model on a free port, and print what it did."""
    with serving() as (url, process):
        asyncio.run(load(url, range(clients), clients))  # a warm-up
        alone, each, whole = asyncio.run(load(url, range(requests), 1))
        print(report_line("one after the other", each, whole))
        together, each_of_many, whole_of_many = asyncio.run(load(url, range(requests), clients))
        print(report_line(f"{clients} clients", each_of_many, whole_of_many))
        print(f"{whole / whole_of_many:.2f} times the images per second; {len(together)} of {requests} answered")
        print("images equal" if together == alone else "IMAGES DIFFER")
        tenth = max(1, memory_requests // 10)
        for done in range(0, memory_requests, tenth):
            asyncio.run(load(url, range(done, done + tenth), clients))
            print(f"{done + tenth:6} requests: {resident(process):.0f} MiB")


if __name__ == "__main__":
    typer.run(main)
