"""Adds `/metrics` to the server.

Requests and models are counted from the start by small tallies; all else, prometheus_client above all, is imported with
the first scrape, in a thread: a server that nobody scrapes is neither larger nor slower for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from rolecall.core.events import Effect, Event
from rolecall.errors import RolecallError
from rolecall.gateway.routes import INFERENCE_PATHS, ScopedRoute
from rolecall.gateway.server import Addition, Gateway
from rolecall.insight.load_tally import LoadTally
from rolecall.insight.tally import RequestTally

if TYPE_CHECKING:
    from rolecall.insight.scrapes import Scrapes


@contextlib.asynccontextmanager
async def metrics(gateway: Gateway) -> AsyncIterator[Addition]:
    """Count what a gateway does, and add the page that tells of it."""
    lazy = LazyMetrics(gateway)
    try:
        yield Addition((ScopedRoute("/metrics", lazy.serve, methods=["GET"], need="admin"),))
    finally:
        await lazy.aclose()


class LazyMetrics:
    """Counts, and makes what answers scrapes with the first of them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._requests = RequestTally(INFERENCE_PATHS, error_codes())
        self._loads = LoadTally()
        self._made: Scrapes | None = None
        services = gateway.services
        services.recorder.listeners.append(self._requests.hear)
        services.supervisor.listen(self._hear)

    def _hear(self, event: Event, effects: list[Effect]) -> None:
        self._loads.hear(event, effects, self._gateway.services.supervisor.decision_s)

    async def serve(self, request: Request) -> Response:
        """Return the page."""
        if self._made is None:
            scrapes = await asyncio.to_thread(_scrapes)
            return await self._make(scrapes).serve(request)
        return await self._made.serve(request)

    def _make(self, scrapes: type[Scrapes]) -> Scrapes:
        if self._made is None:  # else another scrape has come meanwhile
            self._made = scrapes(self._gateway, self._requests, self._loads)
        return self._made

    async def aclose(self) -> None:
        """Close what is open."""
        if self._made is not None:
            await self._made.aclose()


def _scrapes() -> type[Scrapes]:
    from rolecall.insight.scrapes import Scrapes  # noqa: PLC0415 - prometheus_client, with the first scrape

    return Scrapes


def error_codes() -> frozenset[str]:
    """Return the codes of errors that may become labels: our own, and those that lines are given beside."""
    return frozenset({"client_gone", "upstream_error", *_codes(RolecallError)})


def _codes(error: type[RolecallError]) -> Iterator[str]:
    if error.code is not None:
        yield error.code
    for child in error.__subclasses__():
        yield from _codes(child)
