"""Adds the endpoints for single pictures, and `/api/config`, to the server.

What they need (Pillow, the tasks) is read with the first request for them, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from rolecall.gateway.routes import ScopedRoute
from rolecall.gateway.server import Addition, Gateway
from rolecall.vision.config_routes import config_routes

if TYPE_CHECKING:
    from rolecall.vision.single import SingleRequests

PATHS = ("/analyze_image", "/ocr", "/api/tag", "/api/describe", "/api/chat", "/api/generate-embeddings")


@contextlib.asynccontextmanager
async def single_requests(gateway: Gateway) -> AsyncIterator[Addition]:
    """Add the routes to a gateway."""
    lazy = LazyRequests(gateway)
    routes = [ScopedRoute(path, lazy.serve, methods=["POST"], need="inference") for path in PATHS]
    yield Addition((*routes, *config_routes(gateway)))


class LazyRequests:
    """Makes what answers requests with the first of them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._made: SingleRequests | None = None

    async def serve(self, request: Request) -> Response:
        """Return the answer."""
        if self._made is None:
            self._made = await asyncio.to_thread(_made, self._gateway)
        return await self._made.serve(request)


def _made(gateway: Gateway) -> SingleRequests:
    from rolecall.vision.single import SingleRequests  # noqa: PLC0415 - Pillow, which many servers never need
    from rolecall.vision.tasks import TaskFolder, folders_of  # noqa: PLC0415

    return SingleRequests(gateway, TaskFolder(*folders_of(gateway.services.settings)))
