"""Answers scrapes of `/metrics`, one after the other. Imported with the first of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain

from starlette.requests import Request
from starlette.responses import Response

from rolecall.gateway.server import Gateway
from rolecall.insight.engine_metrics import EngineMetrics
from rolecall.insight.load_tally import LoadTally
from rolecall.insight.metrics_families import Family, load_families, request_families, state_families
from rolecall.insight.metrics_page import Form, PageWriter, form_of
from rolecall.insight.tally import MAX_SERIES, UNKNOWN, RequestTally, Tallied

FRESH_S = 0.5
"""How long a page is given again."""


@dataclass(frozen=True, slots=True)
class _Page:
    data: bytes
    content_type: str
    at: float


class Scrapes:
    """Tells what the tallies have counted and how things stand; the same page to those who come close together."""

    def __init__(self, gateway: Gateway, requests: RequestTally, loads: LoadTally) -> None:
        self._gateway = gateway
        self._requests = requests
        self._loads = loads
        self._engines = EngineMetrics(gateway.services.supervisor.answering)
        self._pages: dict[Form, _Page] = {}
        self._writer = PageWriter()
        self._turn = asyncio.Lock()

    async def serve(self, request: Request) -> Response:
        """Return the page."""
        form = form_of(",".join(request.headers.getlist("accept")))
        async with self._turn:
            page = self._pages.get(form)
            if page is None or time.monotonic() - page.at >= FRESH_S:
                page = await self._write(form)
        return Response(page.data, headers={"content-type": page.content_type, "cache-control": "no-store"})

    async def _write(self, form: Form) -> _Page:
        more = await self._engines.look()
        at = time.monotonic()
        models = self._models()
        counted = request_families(self._tallied(models), (UNKNOWN, *models))
        families = chain(counted, list(self._families(models, at)))  # the former in the thread
        data, content_type = await asyncio.to_thread(self._writer.write, form, families, more)
        page = self._pages[form] = _Page(data, content_type, at)
        return page

    def _models(self) -> set[str]:
        """Return the models of the registry, and those that still run without it."""
        services = self._gateway.services
        return {*(entry.name for entry in services.roster.catalog.entries), *services.supervisor.names}

    def _tallied(self, models: Collection[str]) -> Tallied:
        self._requests.forget(models, self._gateway.services.roster.catalog.roles)
        self._loads.forget(models, MAX_SERIES)
        return self._requests.counted()

    def _families(self, models: Collection[str], now: float) -> Iterator[Family]:
        yield from load_families(self._loads, models)
        yield from state_families(self._gateway, now)
        yield from self._engines.families()

    async def aclose(self) -> None:
        """Close what is open."""
        await self._engines.aclose()
