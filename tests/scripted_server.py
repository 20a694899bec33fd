"""A server on loopback that does with each connection whatever a test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import anyio

Script = Callable[["Peer"], Awaitable[None]]


@dataclass
class Peer:
    """A connection as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> bytes:
        """Read a request, head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        body = b""
        if b"content-length" in lines:
            body = await self.reader.readexactly(int(lines[b"content-length"]))
        elif b"transfer-encoding" in lines:
            body = await self.reader.readuntil(b"0\r\n\r\n")
        return head + body

    async def send(self, data: bytes, *, bytewise: bool = False) -> None:
        """Send bytes, each in a packet of its own if that is asked for."""
        for piece in (data[at : at + 1] for at in range(len(data))) if bytewise else [data]:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    def reset(self) -> None:
        """Break the connection off, so that the other side is told so."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def left(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(OSError):
            while await self.reader.read(65536):
                pass


@dataclass
class Server:
    """What is known of a server."""

    port: int = 0
    accepted: int = 0
    connected: int = 0
    is_alone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """An address of it."""
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    async def alone(self) -> None:
        """Wait until nobody is connected."""
        with anyio.fail_after(5):
            await self.is_alone.wait()


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Server]:
    """Run a server."""
    server = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.accepted += 1
        server.connected += 1
        server.is_alone.clear()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(Peer(reader, writer, server.accepted))
        writer.close()
        server.connected -= 1
        if not server.connected:
            server.is_alone.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


def answering(answer: bytes, requests: list[bytes] | None = None, *, bytewise: bool = False) -> Script:
    """Return a script that gives the same answer to each request, for as long as the client asks."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if requests is not None:
                requests.append(request)
            await peer.send(answer, bytewise=bytewise)

    return script


def answering_once(answer: bytes) -> Script:
    """Return a script that answers one request and closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    return script
