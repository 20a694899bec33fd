"""Adds the endpoints for single pictures, and `/api/config`, to the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from rolecall.gateway.server import Addition, Gateway
from rolecall.vision.config_routes import config_routes


@contextlib.asynccontextmanager
async def single_requests(gateway: Gateway) -> AsyncIterator[Addition]:
    """Add the routes to a gateway."""
    yield Addition(tuple(config_routes(gateway)))
