"""The way of an answer's bytes to the client: over ASGI's ``send``, or past it straight to the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

WIRE = "rolecall.wire"
"""The extension of the scope in which our HTTP server offers the connection itself."""


class Watch(Protocol):
    """A look-out for the client's leaving."""

    def cancel(self) -> object:
        """Look no more."""
        ...


class Wire(Protocol):
    """Gives what has come of a request, and takes its answer: ``head``, parts, ``end``, or the ``whole`` at once.

    Each of these may have to be followed by ``drain``. ``task`` is the one that serves the request.
    """

    task: asyncio.Task[Any] | None

    def body(self) -> bytes | None:
        """Return the request's body if all of it has come already; else None: it has to be received."""
        ...

    def whole(self, status: int, headers: Mapping[str, str], data: bytes) -> bool:
        """Send an answer with ``content-length``; return whether it is on its way, without ``drain``."""
        ...

    def head(self, status: int, headers: Mapping[str, str]) -> bool:
        """Send status and headers; return whether they are on their way, without ``drain``."""
        ...

    def part(self, data: bytes) -> bool:
        """Send a part of the body; return whether more is taken at once, without ``drain`` before."""
        ...

    def end(self, data: bytes) -> bool:
        """Send the last part of the body, and its end; return whether it is on its way, without ``drain``."""
        ...

    async def drain(self) -> None:
        """Wait until the client takes more."""
        ...

    def watch(self, receive: Receive, leave: Callable[[], None]) -> Watch:
        """Have ``leave`` called when the client closes its connection; to be asked once the body is complete."""
        ...


class AsgiWire:
    """Any ASGI server, whose ``send`` may wait for each message."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.task = asyncio.current_task()
        self._waiting: list[dict[str, object]] = []

    def body(self) -> None:
        """Nothing is known of it."""

    def head(self, status: int, headers: Mapping[str, str]) -> bool:
        """Keep status and headers until ``drain``."""
        pairs = [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        self._waiting.append({"type": "http.response.start", "status": status, "headers": pairs})
        return False

    def whole(self, status: int, headers: Mapping[str, str], data: bytes) -> bool:
        """Keep it until ``drain``."""
        self.head(status, headers)
        return self.end(data)

    def part(self, data: bytes) -> bool:
        """Keep a part until ``drain``."""
        self._waiting.append({"type": "http.response.body", "body": data, "more_body": True})
        return False

    def end(self, data: bytes) -> bool:
        """Keep the end until ``drain``."""
        self._waiting.append({"type": "http.response.body", "body": data, "more_body": False})
        return False

    async def drain(self) -> None:
        """Send what was kept."""
        while self._waiting:
            await self._send(self._waiting[0])
            del self._waiting[0]

    def watch(self, receive: Receive, leave: Callable[[], None]) -> Watch:
        """Look at what the server tells, in a task."""
        return asyncio.ensure_future(_until_gone(receive, leave))


async def _until_gone(receive: Receive, leave: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()


def wire_of(scope: Scope, send: Send) -> Wire:
    """Return the shortest way to the client of a request."""
    wire: Wire | None = scope.get("extensions", {}).get(WIRE)
    return AsgiWire(send) if wire is None else wire
