"""Engines' own metrics: fetched when somebody scrapes, at most every five seconds, from those that are loaded.

llama-server ends an answer that nobody waits for any more only after a second without news, and to be asked for its
metrics counts as news; it must never be asked more often than that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import anyio
import httpx
from prometheus_client.core import Metric

from rolecall.backends.base import Upstream
from rolecall.insight.engine_metrics_text import merged
from rolecall.insight.metrics_families import Family
from rolecall.runtime.plain_http import plain_client

log = logging.getLogger(__name__)

EVERY_S = 5.0
LIMIT_S = 2.0
"""How long all engines together may take."""

MAX_BYTES = 2 * 2**20
_ABSENT = frozenset({401, 403, 404, 405, 501})
"""Answers of an engine that has no such page, or not for us; it is not asked again."""


class EngineMetrics:
    """Asks ``engines`` (by model, and how they are reached) and keeps what they said last."""

    def __init__(
        self,
        engines: Callable[[], Sequence[tuple[str, Upstream]]],
        *,
        every_s: float = EVERY_S,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._engines = engines
        self._every_s = every_s
        self._limit_s = limit_s
        self._http: httpx.AsyncClient | None = None
        self._absent: set[tuple[str, str]] = set()
        self._metrics: list[Metric] = []
        self._is_up: dict[str, bool] = {}
        self._rejected: dict[str, int] = {}
        self._looked_at = -float("inf")

    async def look(self) -> list[Metric]:
        """Return the metrics of all engines, each sample with a label ``model``; an engine that is silent has none."""
        now = time.monotonic()
        if now - self._looked_at < self._every_s:
            return self._metrics
        self._looked_at = now
        engines = {(name, upstream.base_url): upstream for name, upstream in self._engines()}
        self._absent &= engines.keys()
        asked = engines.keys() - self._absent
        texts: dict[str, bytes] = {}
        with anyio.move_on_after(self._limit_s):
            async with anyio.create_task_group() as group:
                for name, url in asked:
                    group.start_soon(self._ask, name, engines[name, url], texts)
        self._metrics, self._rejected = await asyncio.to_thread(merged, texts) if texts else ([], {})
        self._is_up = {name: name in texts for name, _ in asked - self._absent}
        return self._metrics

    async def _ask(self, name: str, upstream: Upstream, texts: dict[str, bytes]) -> None:
        self._http = self._http or plain_client()
        headers = {"connection": "close", "accept": "text/plain;version=0.0.4"}
        if (authorization := upstream.authorization()) is not None:
            headers["authorization"] = authorization
        try:
            async with self._http.stream(
                "GET", upstream.url("/metrics"), headers=headers, timeout=self._limit_s
            ) as got:
                if got.status_code in _ABSENT:
                    self._absent.add((name, upstream.base_url))
                elif got.status_code == httpx.codes.OK and (text := await _limited(got)) is not None:
                    texts[name] = text
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, AttributeError) as error:
            # AttributeError is anyio's, of a connection that was lost in the moment in which it was made.
            log.debug("%s does not tell its metrics: %s", name, type(error).__name__)

    def families(self) -> Iterator[Family]:
        """Yield what became of the last look."""
        yield Family(
            "rolecall_engine_metrics_up",
            "gauge",
            "1 if the engine of a model told its own metrics when it was asked last, 0 if it did not.",
            ("model",),
            [((name,), int(is_up)) for name, is_up in sorted(self._is_up.items())],
        )
        yield Family(
            "rolecall_engine_metrics_rejected_samples",
            "gauge",
            "Samples of an engine's own metrics that were left out: no valid text, too many, or in the way of others.",
            ("model",),
            [((name,), count) for name, count in sorted(self._rejected.items())],
        )

    async def aclose(self) -> None:
        """Close what is open."""
        if self._http is not None:
            await self._http.aclose()


async def _limited(response: httpx.Response) -> bytes | None:
    data = b""
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_BYTES:
            return None
    return data
