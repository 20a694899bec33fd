"""`/api/config`: what is set for llama.cpp's engines and for requests that say nothing themselves."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from rolecall.core.api_config import DEFAULTS, ApiConfig
from rolecall.errors import BadRequest, DiskFull
from rolecall.gateway.body import parse_json, receive_body
from rolecall.gateway.routes import Json, ScopedRoute
from rolecall.gateway.server import Gateway

PATH = "/api/config"
_MAX_BODY_BYTES = 2**16


def config_routes(gateway: Gateway) -> list[ScopedRoute]:
    """Return the routes, which need a key with the scope ``admin``."""
    api = _Api(gateway)
    return [
        ScopedRoute(PATH, api.show, methods=["GET"], need="admin"),
        ScopedRoute(PATH, api.change, methods=["POST"], need="admin"),
    ]


class _Api:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def show(self, _request: Request) -> Json:
        return Json(self._view())

    async def change(self, request: Request) -> Json:
        raw = await receive_body(dict(request.scope["headers"]), request.receive, _MAX_BODY_BYTES)
        held = self._gateway.services.roster.api_config
        config = held.config.changed(parse_json(raw))
        if config != held.config:
            self._check(config)
            try:
                self._gateway.reconfigure(config)
            except OSError as error:
                raise DiskFull(
                    f"The configuration cannot be written to the state folder, and nothing was changed: "
                    f"{error.strerror or error}."
                ) from error
        return Json(self._view())

    def _check(self, config: ApiConfig) -> None:
        """Raise ``BadRequest`` if a model that is there could not be served any more."""
        roster = self._gateway.services.roster
        there = (each for each in roster.as_configured(config) if each.name not in roster.catalog.unavailable)
        for entry in there:
            if (reason := roster.backend(entry).unavailable(entry)) is not None:
                raise BadRequest(f"Then {entry.name!r} could not be served: {reason}.", param="backend")

    def _view(self) -> dict[str, Any]:
        """Return what is in force; ``set`` is what somebody has set of it, ``reloading`` who waits to be idle."""
        roster, supervisor = self._gateway.services.roster, self._gateway.services.supervisor
        held, config = roster.api_config, roster.api_config.config
        names = (entry.name for entry in roster.catalog.entries)
        return {
            "backend": config.backend or "server",
            "llm_params": {**DEFAULTS, **config.llm_params.given},
            "set": {"backend": config.backend, "llm_params": config.llm_params.given},
            "reloading": [name for name in names if supervisor.scheduler.is_outdated(name)],
            "problem": held.problem,
        }
