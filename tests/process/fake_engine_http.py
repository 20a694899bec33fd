"""HTTP/1.1 as the fake engine speaks it: requests read while answers are written, and answers that can break off."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

JSON_TYPE = "application/json; charset=utf-8"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
REASONS |= {501: "Not Implemented", 503: "Service Unavailable"}
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    501: "not_supported_error",
}
ERROR_TYPES |= {429: "rate_limit_error", 503: "unavailable_error"}


class Cut(Exception):
    """The connection ends here, without the rest of the answer."""


@dataclass(frozen=True)
class Request:
    """One request as read; header names in lower case, repeated ones joined by a comma."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    query: dict[str, list[str]] = field(default_factory=dict)

    @property
    def wants_close(self) -> bool:
        """Whether the client asked for the connection to end with this answer."""
        return "close" in self.headers.get("connection", "").lower()

    def json(self) -> Any:
        """The body as JSON, None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def shown(self) -> dict[str, Any]:
        """As /stats shows it."""
        text = self.body.decode("utf-8", "backslashreplace")
        return {"path": self.path, "headers": self.headers, "body": self.json(), "body_text": text}


class Reply:
    """Writes one response: a body with its length, or a chunked stream of SSE."""

    def __init__(self, writer: asyncio.StreamWriter, *, close: bool) -> None:
        self.writer, self.close = writer, close
        self.streaming, self.split_bytes, self._unsent = False, 0, b""

    def _head(self, status: int, content_type: str, length: str) -> bytes:
        connection = "Connection: close" if self.close else "Keep-Alive: timeout=5, max=100"
        lines = (f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}", "Server: fake-engine")
        return "\r\n".join((*lines, f"Content-Type: {content_type}", length, connection, "", "")).encode()

    async def _write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def body(self, status: int, data: bytes) -> None:
        """A whole JSON response; as in llama-server, an error ends the connection."""
        self.close = self.close or status >= 400
        await self._write(self._head(status, JSON_TYPE, f"Content-Length: {len(data)}") + data)

    async def json(self, value: object, status: int = 200) -> None:
        """A JSON response."""
        await self.body(status, encode(value))

    async def error(self, status: int, message: str, **more: object) -> None:
        """An error in llama-server's shape."""
        await self.json({"error": error_body(status, message) | more}, status)

    async def open_stream(self, split_bytes: int) -> None:
        """The head of an SSE stream, whose text is then written in pieces of `split_bytes` (0: as it comes)."""
        self.streaming, self.split_bytes = True, split_bytes
        await self._write(self._head(200, "text/event-stream", "Transfer-Encoding: chunked"))

    async def send(self, data: bytes) -> None:
        """SSE text; a rest shorter than a piece waits for the next call or for `flush`."""
        size = self.split_bytes or len(data)
        data = self._unsent + data
        whole = len(data) - len(data) % size
        self._unsent = data[whole:]
        for at in range(0, whole, size):
            await self._write(chunk(data[at : at + size]))
            await asyncio.sleep(0)

    async def event(self, value: object) -> None:
        """One SSE event with a JSON value."""
        await self.send(b"data: " + encode(value) + b"\n\n")

    async def flush(self) -> None:
        """Write what is left of a split stream."""
        if self._unsent:
            await self._write(chunk(self._unsent))
            self._unsent = b""

    async def end_stream(self) -> None:
        """The end marks of SSE and of HTTP."""
        await self.send(b"data: [DONE]\n\n")
        await self.flush()
        await self._write(chunk(b""))

    def reset(self) -> None:
        """End the connection with a RST."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Connection:
    """One client connection: it is read while an answer is written, so that its end cancels the answer at once.

    `answer` writes the response to one request; it may raise Cut. As in llama-server the connection is closed after
    `idle_s` without a request, and after `max_requests`.
    """

    def __init__(self, answer: Callable[[Request, Reply], Awaitable[None]], idle_s: float, max_requests: int) -> None:
        self.answer, self.idle_s, self.max_requests = answer, idle_s, max_requests

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side ends the connection."""
        writer.transport.set_write_buffer_limits(high=0)
        self.reader, self.writer = reader, writer
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._start_idle_timer()
        answers = asyncio.create_task(self._answer_all())
        try:
            while True:
                self._requests.put_nowait(await self._read())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._idle.cancel()
            answers.cancel()
            writer.close()

    def _start_idle_timer(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(self.idle_s, self.writer.close)

    async def _answer_all(self) -> None:
        try:
            for count in itertools.count(1):
                request = await self._requests.get()
                self._idle.cancel()
                reply = Reply(self.writer, close=count == self.max_requests or request.wants_close)
                await self.answer(request, reply)
                if reply.close:
                    break
                self._start_idle_timer()
        except (Cut, ConnectionError):
            pass
        finally:
            self.writer.close()

    async def _read(self) -> Request:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self._idle.cancel()
        start, *lines = head.split("\r\n")[:-2]
        method, target, _ = start.split(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if headers.get("expect", "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        path, _, query = target.partition("?")
        return Request(method, path, headers, await self._read_body(headers), parse_qs(query))

    async def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", 0)))
        pieces: list[bytes] = []
        while size := int((await self.reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            pieces.append((await self.reader.readexactly(size + 2))[:-2])
        while await self.reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return b"".join(pieces)


def encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def error_body(status: int, message: str) -> dict[str, object]:
    return {"code": status, "message": message, "type": ERROR_TYPES.get(status, "server_error")}
