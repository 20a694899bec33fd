"""Adds to the server what the dashboard asks it for: events, history, stopping, what engines print."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from rolecall.gateway.caller import caller_of
from rolecall.gateway.routes import ScopedRoute
from rolecall.gateway.server import Addition, Gateway
from rolecall.insight.event_stream import EventStream
from rolecall.insight.feed import Feed
from rolecall.insight.output_routes import OutputRoutes
from rolecall.insight.request_routes import RequestRoutes
from rolecall.insight.staying import staying


@contextlib.asynccontextmanager
async def dashboard(gateway: Gateway) -> AsyncIterator[Addition]:
    """Add the endpoints to a gateway."""
    feed, output = Feed(gateway), OutputRoutes(gateway)

    async def events(request: Request) -> Response:
        watcher = feed.admit(staying(gateway.keys, caller_of(request.scope)))
        return EventStream(feed.events(watcher), watcher.end, lambda: feed.dismiss(watcher))

    def stop() -> None:
        feed.stop()
        output.stop()

    routes = (
        ScopedRoute("/v1/events", events, methods=["GET"], need="admin"),
        *RequestRoutes(gateway, feed).routes(),
        *output.routes(),
    )
    try:
        yield Addition(routes, stop)
    finally:
        await feed.aclose()
