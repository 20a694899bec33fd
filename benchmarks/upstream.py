# ruff: noqa: INP001 - a script of its own
"""What the way to an engine costs, by rolecall's client and by httpx: CPU time in µs of a request, and of a part.

    python benchmarks/upstream.py [--url http://127.0.0.1:PORT/v1/chat/completions] [--json]

Without ``--url`` a process of its own answers, whose time does not count. Each figure is the least of 3 rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from rolecall.gateway.loopback import LoopbackTransport
from rolecall.gateway.upstream import HttpxTransport, Transport

CHUNKS = 200
WHOLE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300\r\n\r\n"' + b"x" * 298 + b'"'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"c8\r\ndata: " + b"x" * 192 + b"\n\n\r\n"


def body(*, stream: bool) -> bytes:
    """Return a chat, and for the mock of the measurements how long its answer is to be."""
    told = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    return json.dumps({**told, "max_tokens": CHUNKS, "seed": 1}).encode()


class Answerer(asyncio.Protocol):
    """Answers whatever ends like JSON: a whole answer, or a stream of a part each ms."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer."""
        if not data.endswith(b"}"):
            return
        if b'"stream": true' in data:
            self._transport.write(STREAM)
            self._send_part(CHUNKS)
        else:
            self._transport.write(WHOLE)

    def _send_part(self, left: int) -> None:
        self._transport.write(CHUNK if left else b"0\r\n\r\n")
        if left:
            asyncio.get_running_loop().call_later(0.001, self._send_part, left - 1)


def answer(listener: socket.socket) -> None:
    """Serve until the process is ended."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Answerer, sock=listener)
        await server.serve_forever()

    uvloop.run(serve())


async def ask(transport: Transport, url: str, data: bytes) -> int:
    """Send a request, read its answer, and return in how many parts it came."""
    headers = {"content-type": "application/json", "content-length": str(len(data)), "accept-encoding": "identity"}
    response = await transport.post(url, headers, data, head_timeout_s=30)
    parts = [chunk async for chunk in response.chunks(30)]
    await response.close()
    return len(parts)


async def cost(transport: Transport, url: str, *, connections: int, requests: int, stream: bool = False) -> float:
    """Return the CPU time in µs of a request, or of a part of a stream."""
    data = body(stream=stream)

    async def client(count: int) -> int:
        return sum([await ask(transport, url, data) for _ in range(count)])

    await client(1)
    rounds = []
    for _ in range(3):
        began = time.process_time()
        parts = sum(await asyncio.gather(*(client(requests // connections) for _ in range(connections))))
        rounds.append((time.process_time() - began) / (parts if stream else requests))
    return min(rounds) * 1e6


async def figures(url: str, make: Callable[[], LoopbackTransport | HttpxTransport], scale: int) -> dict[str, float]:
    """Return what is measured of one client."""
    transport = make()
    measures: dict[str, Awaitable[float]] = {
        f"request, {connections} at once": cost(transport, url, connections=connections, requests=64 * scale)
        for connections in (1, 32, 128 if scale > 1 else 64)
    }
    measures["part, 16 streams"] = cost(transport, url, connections=16, requests=16, stream=True)
    found = {name: round(await measure, 1) for name, measure in measures.items()}
    await transport.aclose()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="an engine that answers in place of the one that is part of this script")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        url = given.url or f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
        process = multiprocessing.get_context("fork").Process(target=answer, args=(listener,), daemon=True)
        process.start()
        found = {
            "rolecall": uvloop.run(figures(url, LoopbackTransport, 100)),
            "httpx": uvloop.run(figures(url, HttpxTransport, 10)),
        }
        process.terminate()
    if given.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for client, costs in found.items():
        for name, us in costs.items():
            sys.stdout.write(f"{client:<10}{name:<26}{us:>9.1f} µs\n")


if __name__ == "__main__":
    main()
