"""Connections to engines are closed, whenever the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket

import pytest

from rolecall.errors import UpstreamUnreachable
from rolecall.gateway.http_request import Pieces
from rolecall.gateway.upstream import HttpxTransport
from scripted_server import answering, scripted
from unused_ports import unused_port

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Engine:
    """A server that gives an answer, or none, and knows who is connected."""

    def __init__(self, answer: bytes = b"") -> None:
        self._answer = answer
        self.accepted = 0
        self._connected = 0
        self.is_alone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read until the client goes."""
        self.accepted += 1
        self._connected += 1
        self.is_alone.clear()
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                writer.write(self._answer)
        writer.close()
        self._connected -= 1
        if not self._connected:
            self.is_alone.set()


@pytest.mark.parametrize("size", [10, 300_000])
async def test_no_connection_is_left_whenever_a_request_is_cancelled(size: int) -> None:
    """After any number of turns of the loop: before, while and after the connection is made and the body is sent."""
    engine, transport = Engine(), HttpxTransport()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    for turns in range(60):
        task = asyncio.create_task(transport.post(url, {}, b"x" * size, head_timeout_s=5))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    assert engine.accepted > 10
    await asyncio.wait_for(engine.is_alone.wait(), 5)
    await transport.aclose()
    server.close()


async def test_no_connection_is_left_whenever_closing_is_cancelled() -> None:
    """A client that leaves while the answer's connection is being closed does not keep it open."""
    engine, transport = Engine(ANSWER), HttpxTransport()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    gc.disable()  # it would close what is lost
    try:
        for turns in range(1, 20):  # a task that was never begun closes nothing
            response = await transport.post(url, {}, b"x", head_timeout_s=5)
            if turns % 2:
                assert [chunk async for chunk in response.chunks(5)] == [b"ok"]
            task = asyncio.create_task(response.close())
            for _ in range((turns + 1) // 2):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        await asyncio.wait_for(engine.is_alone.wait(), 5)
    finally:
        gc.enable()
    await transport.aclose()
    server.close()


async def test_nobody_listens() -> None:
    """A port on which nobody listens is an engine that cannot be reached."""
    transport = HttpxTransport()
    with pytest.raises(UpstreamUnreachable):
        await transport.post(f"http://127.0.0.1:{unused_port()}/", {}, b"", head_timeout_s=5)
    await transport.aclose()


async def test_nobody_takes_the_connection() -> None:
    """An engine that listens and accepts nobody in time cannot be reached: nothing was sent to it."""
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):  # one more than the queue is long
            each = waiting.enter_context(socket.socket())
            each.settimeout(0)
            each.connect_ex(full.getsockname())
        transport = HttpxTransport(connect_timeout_s=0.1)
        with pytest.raises(UpstreamUnreachable, match="does not take the connection in time"):
            await transport.post(f"http://127.0.0.1:{full.getsockname()[1]}/", {}, b"", head_timeout_s=5)
        await transport.aclose()


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_bodies_arrive_whole_over_httpx(size: int) -> None:
    """In one piece or in several, with the length that the request says."""
    requests: list[bytes] = []
    data = b"xyz" * (size // 3) + b"x" * (size % 3)
    transport = HttpxTransport()
    async with scripted(answering(ANSWER, requests)) as server:
        for body in (data, Pieces([data[: size // 3], memoryview(data)[size // 3 :], b""])):
            response = await transport.post(server.url, {"content-length": str(size)}, body, head_timeout_s=5)
            assert response.status == 200
            await response.close()
    await transport.aclose()
    heads, bodies = zip(*(request.split(b"\r\n\r\n", 1) for request in requests), strict=True)
    assert bodies == (data, data)
    assert not any(b"chunked" in head.lower() for head in heads)
