"""One request on our own HTTP server: served as ASGI says, but with the connection at hand.

ASGI passes each head and each part of a body as a message through a coroutine per middleware, and uvicorn looks at each
header with two regular expressions: for a small answer that costs as much as all that rolecall does about it, and for
the parts of a stream more. So whoever knows the extension ``WIRE`` of the scope writes past all that, in the form that
uvicorn would write; everybody else uses ``send``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from rolecall.errors import RolecallError
from rolecall.gateway.wire import WIRE

_NO_BODY = frozenset({204, 304})
_LARGE_BYTES = 2**16
"""From here on a part is not copied to be put between the marks of its chunk."""


@lru_cache(maxsize=4)
def _lines(*headers: tuple[bytes, bytes]) -> bytes:
    """Return the lines of uvicorn's own headers, which change once a second."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


class EdgeWire:
    """A request and the wire of its answer; ``problem`` says why the body of a request will not come to an end."""

    def __init__(
        self,
        cycle: RequestResponseCycle,
        app: ASGIApp,
        problem: Callable[[RequestResponseCycle], RolecallError | None],
    ) -> None:
        self.cycle = cycle
        self.task: asyncio.Task[Any] | None = None
        self.more: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None
        self._app = app
        self._problem = problem
        self._leave: Callable[[], None] | None = None
        self._unsent = b""

    async def serve(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Serve it as an ASGI application does."""
        scope["extensions"] = {WIRE: self}
        try:
            await self._app(scope, self.receive, send)
        finally:
            self._flush()
            del scope["extensions"]  # the scope is the cycle's, and would be kept with it until the next collection

    async def receive(self) -> Message:
        """Return what uvicorn received; raises why a body that is waited for was refused."""
        message = await self.cycle.receive()
        if message["type"] == "http.request" and (problem := self._problem(self.cycle)) is not None:
            raise problem
        if not message.get("more_body"):
            self.cycle.flow.resume_reading()  # paused behind a large last part: the client's leaving must be noticed
        return message  # type: ignore[return-value]

    # -- the wire

    def body(self) -> bytes | None:
        """Return the request's body if all of it has come already, as that of a small request mostly has."""
        cycle = self.cycle
        if cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        cycle.message_event.clear()
        cycle.flow.resume_reading()  # or the client's leaving would not be noticed after a large one
        return body

    def whole(self, status: int, headers: Mapping[str, str], data: bytes) -> bool:
        """Write an answer with ``content-length``, small ones in one go: each write is a call of the kernel."""
        if len(data) >= _LARGE_BYTES:
            self.head(status, headers)
            return self.end(data)
        if not self.cycle.disconnected:
            self.cycle.transport.write(self._head(status, headers) + data)
            self._complete()
        return not self.cycle.flow.write_paused

    def head(self, status: int, headers: Mapping[str, str]) -> bool:
        """Write status and headers, together with what is written in the same turn of the loop.

        Without ``content-length`` the body goes in chunks.
        """
        self._unsent = self._head(status, headers)
        asyncio.get_running_loop().call_soon(self._flush)
        return True

    def _flush(self) -> None:
        if self._unsent and not self.cycle.disconnected:
            self.cycle.transport.write(self._unsent)
        self._unsent = b""

    def _write(self, data: bytes) -> None:
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        self.cycle.transport.write(data)

    def _head(self, status: int, headers: Mapping[str, str]) -> bytes:
        cycle = self.cycle
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if self.more is not None:
            headers = {**headers, **self.more(headers)}
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError("a header of the answer holds a line break")
        if headers.get("connection") == "close":
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            lines += "connection: close\r\n"
        cycle.chunked_encoding = "content-length" not in headers and status not in _NO_BODY
        if cycle.chunked_encoding:
            lines += "transfer-encoding: chunked\r\n"
        return STATUS_LINE[status] + _lines(*cycle.default_headers) + lines.encode("latin-1", "replace") + b"\r\n"

    def part(self, data: bytes) -> bool:
        """Write a part; what a client that has left would have got is thrown away."""
        cycle = self.cycle
        if data and not (cycle.disconnected or cycle.response_complete):
            write = self._write
            if not cycle.chunked_encoding:
                write(data)
            elif len(data) < _LARGE_BYTES:
                write(b"%x\r\n%b\r\n" % (len(data), data))
            else:
                write(b"%x\r\n" % len(data))
                write(data)
                write(b"\r\n")
        return not cycle.flow.write_paused

    def end(self, data: bytes) -> bool:
        """Write the last part and the end, and make way for the next request."""
        cycle = self.cycle
        if cycle.disconnected:
            return True
        if cycle.chunked_encoding:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
        else:
            self._write(data)
        self._complete()
        return not cycle.flow.write_paused

    def _complete(self) -> None:
        cycle = self.cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written."""
        if self.cycle.flow.write_paused and not self.cycle.disconnected:
            await self.cycle.flow.drain()

    # -- the client's leaving

    def watch(self, receive: Receive, leave: Callable[[], None]) -> EdgeWire:
        """Have ``leave`` called when the connection is lost; at once if it is already."""
        del receive
        if self.cycle.disconnected:
            leave()
        else:
            self._leave = leave
        return self

    def cancel(self) -> None:
        """Tell nobody any more."""
        self._leave = None

    def lost(self) -> None:
        """Take in that the connection is gone."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        if self._leave is not None:
            self._leave()
