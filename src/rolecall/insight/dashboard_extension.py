"""Adds to the server what the dashboard asks it for: events, history, pinning, stopping, what engines print."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timezone

from starlette.requests import Request
from starlette.responses import Response

from rolecall.gateway.caller import Caller, KeyHolder, caller_of
from rolecall.gateway.door import Keys
from rolecall.gateway.routes import ScopedRoute
from rolecall.gateway.server import Addition, Gateway
from rolecall.insight.event_stream import EventStream
from rolecall.insight.feed import Feed


@contextlib.asynccontextmanager
async def dashboard(gateway: Gateway) -> AsyncIterator[Addition]:
    """Add the endpoints to a gateway."""
    feed = Feed(gateway)

    async def events(request: Request) -> Response:
        watcher = feed.admit(staying(gateway.keys, caller_of(request.scope)))
        return EventStream(feed.events(watcher), watcher.end, lambda: feed.dismiss(watcher))

    try:
        yield Addition((ScopedRoute("/v1/events", events, methods=["GET"], need="admin"),), feed.stop)
    finally:
        await feed.aclose()


def staying(keys: Keys | None, caller: Caller) -> Callable[[], bool]:
    """Return what tells whether a caller's key, if there is one, is as much in force as when the request came."""
    if keys is None or not isinstance(caller, KeyHolder):
        return lambda: True
    key = caller.key

    def may_stay() -> bool:
        return key in keys.store.ring.keys and not key.is_expired(datetime.now(timezone.utc))

    return may_stay
