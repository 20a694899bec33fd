"""A stream of events to one client: it ends when the client leaves, when it takes nothing, or when there is no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rolecall.errors import TooManyRequests
from rolecall.gateway.request_id import new_request_id
from rolecall.gateway.wire import wire_of

PATIENCE_S = 30.0
"""How long a client may take nothing of what it asked for."""

HEARTBEAT_S = 15.0
"""After so long without anything to tell a client is told that."""

STILL_THERE = b": still there\n\n"

_RETRY_S = 5.0
_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
}


class EventStream(Response):
    """Writes ``parts`` as they come. ``leave`` is called when the client has left, and has to end them;
    ``close`` in the end, whatever happened.
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        leave: Callable[[], None],
        close: Callable[[], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        super().__init__()
        self._patience_s = patience_s
        self._parts = parts
        self._leave = leave
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        wire = wire_of(scope, send)
        watch = wire.watch(receive, self._leave)
        try:
            wire.head(200, {**_HEADERS, "x-request-id": new_request_id()})
            async for part in self._parts:
                if not wire.part(part) and not await _taken(wire.drain, self._patience_s):
                    return  # without a proper end: the connection is closed
            wire.end(b"")
            await _taken(wire.drain, self._patience_s)
        finally:
            watch.cancel()
            self._close()


async def _taken(drain: Callable[[], Awaitable[None]], patience_s: float) -> bool:
    with anyio.move_on_after(patience_s) as patience:
        await drain()
    return not patience.cancelled_caught


def too_many(words: str) -> TooManyRequests:
    """Return what one client more than may watch is answered."""
    return TooManyRequests(words, retry_after_s=_RETRY_S, code="too_many_watchers")
