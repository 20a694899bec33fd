"""Adds `/metrics` to the server.

Requests and models are counted from the start by small tallies; prometheus_client is imported with the first scrape, in
a thread: a server that nobody scrapes is neither larger nor slower for it. Who scrapes in quick succession, or many at
a time, are given the same page.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from rolecall.core.events import Effect, Event
from rolecall.errors import RolecallError
from rolecall.gateway.routes import INFERENCE_PATHS, ScopedRoute
from rolecall.gateway.server import Addition, Gateway
from rolecall.insight.engine_metrics import EngineMetrics
from rolecall.insight.load_tally import LoadTally
from rolecall.insight.metrics_families import Family, load_families, request_families, state_families
from rolecall.insight.tally import MAX_SERIES, RequestTally

if TYPE_CHECKING:
    from rolecall.insight.metrics_page import PageWriter

FRESH_S = 0.5
"""How long a page is given again."""

_MOST_PAGES = 4
"""Of how many values of ``Accept`` pages are kept."""


@contextlib.asynccontextmanager
async def metrics(gateway: Gateway) -> AsyncIterator[Addition]:
    """Count what a gateway does, and add the page that tells of it."""
    page = Metrics(gateway)
    try:
        yield Addition((ScopedRoute("/metrics", page.serve, methods=["GET"], need="admin"),))
    finally:
        await page.aclose()


@dataclass(frozen=True, slots=True)
class _Page:
    data: bytes
    content_type: str
    at: float


class Metrics:
    """Counts, and answers scrapes one after the other."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._requests = RequestTally(INFERENCE_PATHS, error_codes())
        self._loads = LoadTally()
        self._engines = EngineMetrics(gateway.services.supervisor.answering)
        self._pages: dict[str, _Page] = {}
        self._writer: PageWriter | None = None
        self._turn = asyncio.Lock()
        services = gateway.services
        hear = self._requests.hear_at_once if services.settings.log_prompts else self._requests.hear
        services.recorder.listeners.append(hear)
        services.supervisor.listeners.append(self._hear)

    def _hear(self, event: Event, effects: list[Effect]) -> None:
        self._loads.hear(event, effects, self._gateway.services.supervisor.decision_s)

    async def serve(self, request: Request) -> Response:
        """Return the page."""
        accept = request.headers.get("accept", "")[:500]
        async with self._turn:
            page = self._pages.get(accept)
            if page is None or time.monotonic() - page.at >= FRESH_S:
                page = await self._write(accept)
        return Response(page.data, headers={"content-type": page.content_type, "cache-control": "no-store"})

    async def _write(self, accept: str) -> _Page:
        if self._writer is None:
            self._writer = await asyncio.to_thread(_writer)
        more = await self._engines.look()
        at = time.monotonic()
        families = list(self._families(at))
        data, content_type = await asyncio.to_thread(self._writer.write, accept, families, more)
        if len(self._pages) >= _MOST_PAGES:
            self._pages.clear()
        page = self._pages[accept] = _Page(data, content_type, at)
        return page

    def _families(self, now: float) -> Iterator[Family]:
        catalog = self._gateway.services.roster.catalog
        models = {*(entry.name for entry in catalog.entries), *self._gateway.services.supervisor.names}
        self._requests.forget(models, catalog.roles)
        self._loads.forget(models, MAX_SERIES)
        yield from request_families(self._requests)
        yield from load_families(self._loads)
        yield from state_families(self._gateway, now)
        yield from self._engines.families()

    async def aclose(self) -> None:
        """Close what is open."""
        await self._engines.aclose()


def _writer() -> PageWriter:
    from rolecall.insight.metrics_page import PageWriter  # noqa: PLC0415 - prometheus_client, with the first scrape

    return PageWriter()


def error_codes() -> frozenset[str]:
    """Return the codes of errors that may become labels: our own, and those that lines are given beside."""
    return frozenset({"client_gone", "upstream_error", *_codes(RolecallError)})


def _codes(error: type[RolecallError]) -> Iterator[str]:
    if error.code is not None:
        yield error.code
    for child in error.__subclasses__():
        yield from _codes(child)
