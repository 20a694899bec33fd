"""``POST /v1/feedback``: what was thought of an answer. What takes it in is imported with the first feedback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.requests import Request

from rolecall.gateway.routes import Json, ScopedRoute
from rolecall.gateway.server import Addition, Gateway

if TYPE_CHECKING:
    from rolecall.insight.feedback_desk import Desk

PATH = "/v1/feedback"


@contextlib.asynccontextmanager
async def feedback(gateway: Gateway) -> AsyncIterator[Addition]:
    """Add the route to a gateway."""
    desk = LazyDesk(gateway)
    try:
        yield Addition([ScopedRoute(PATH, desk.post, methods=["POST"], need="inference")])
    finally:
        desk.close()


class LazyDesk:
    """Makes the desk when the first feedback comes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._desk: Desk | None = None

    async def post(self, request: Request) -> Json:
        """Return the answer of the desk."""
        if self._desk is None:
            from rolecall.insight.feedback_desk import Desk  # noqa: PLC0415 - most servers never need it

            self._desk = Desk(self._gateway)
        return await self._desk.post(request)

    def close(self) -> None:
        """Close the desk."""
        if self._desk is not None:
            self._desk.close()
