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
from rolecall.vision.decoding import Decoding

if TYPE_CHECKING:
    from rolecall.vision.single import SingleRequests

PATHS = ("/analyze_image", "/ocr", "/api/tag", "/api/describe", "/api/chat", "/api/generate-embeddings")


@contextlib.asynccontextmanager
async def single_requests(gateway: Gateway, decoding: Decoding | None = None) -> AsyncIterator[Addition]:
    """Add the routes to a gateway; ``decoding`` is what they share with others."""
    lazy = LazyRequests(gateway, decoding or Decoding())
    routes = [ScopedRoute(path, lazy.serve, methods=["POST"], need="inference") for path in PATHS]
    yield Addition((*routes, *config_routes(gateway)))


class LazyRequests:
    """Makes what answers requests with the first of them."""

    def __init__(self, gateway: Gateway, decoding: Decoding) -> None:
        self._gateway = gateway
        self._decoding = decoding
        self._made: SingleRequests | None = None

    async def serve(self, request: Request) -> Response:
        """Return the answer."""
        if self._made is None:
            self._made = await asyncio.to_thread(_made, self._gateway, self._decoding)
        return await self._made.serve(request)


def _made(gateway: Gateway, decoding: Decoding) -> SingleRequests:
    from rolecall.vision.single import SingleRequests  # noqa: PLC0415 - Pillow, which many servers never need
    from rolecall.vision.tasks import TaskFolder, folders_of  # noqa: PLC0415

    return SingleRequests(gateway, TaskFolder(*folders_of(gateway.services.settings)), decoding)
