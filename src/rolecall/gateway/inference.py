"""The inference endpoints as one pure ASGI application, and the end of what runs in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from rolecall.gateway.exchange import LAST_WORDS_S, Exchange
from rolecall.gateway.services import Services

_A_MOMENT_S = 0.25


class Inference:
    """Pure ASGI: ``Request`` and ``StreamingResponse`` never notice a client that leaves before the first byte."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._active: set[Exchange] = set()
        self._served = True  # since somebody looked
        self._is_idle: asyncio.Event | None = None  # of interest only at the end
        self.on_begin: Callable[[], None] | None = None
        """Is called when a request has come, while somebody watches."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(self._services, scope, send)
        self._active.add(exchange)
        self._served = True
        if self.on_begin is not None:
            self.on_begin()
        try:
            await exchange.run(receive)
        finally:
            self._active.discard(exchange)
            if self._is_idle is not None and not self._active:
                self._is_idle.set()

    @property
    def active(self) -> tuple[Exchange, ...]:
        """What is being served now, in no order."""
        return tuple(self._active)

    async def serve_out(self, grace_s: float) -> None:
        """Go on serving what comes, until nothing has come for a moment, for ``grace_s`` at most.

        The moment is for clients that had their answer and send the next request over the same connection.
        """
        deadline = time.monotonic() + grace_s
        while (left_s := deadline - time.monotonic()) > 0 and await self._idle_within(left_s):
            await asyncio.sleep(min(_A_MOMENT_S, left_s))
            if not self._active and not self._served:
                return
            self._served = False

    async def drain(self, grace_s: float) -> None:
        """Refuse what waits or comes, let answers in flight finish for ``grace_s``, then end them with an error."""
        self._services.supervisor.stop_admission()
        if not await self._idle_within(grace_s):
            for exchange in list(self._active):
                exchange.interrupt()
            await self._idle_within(2 * LAST_WORDS_S)

    async def _idle_within(self, seconds: float) -> bool:
        if not self._active:
            return True
        is_idle = self._is_idle = asyncio.Event()
        waiting = asyncio.ensure_future(is_idle.wait())
        await asyncio.wait({waiting}, timeout=seconds)
        waiting.cancel()
        return is_idle.is_set()
