"""The application: routes, errors in OpenAI's shape, a request id on every answer."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from socket import gethostname

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from rolecall.core.error_shapes import error_body
from rolecall.core.hosts import AllowedHosts, AllowedOrigins, is_host_rule, is_loopback
from rolecall.errors import MethodNotAllowed, RolecallError
from rolecall.gateway.body import ClientGone
from rolecall.gateway.door import Door, Keys
from rolecall.gateway.exchange import CLIENT_GONE
from rolecall.gateway.inference import Inference
from rolecall.gateway.request_id import new_request_id
from rolecall.gateway.routes import INFERENCE_PATHS, Json, ScopedRoute, needed_scope, not_found, routes
from rolecall.gateway.services import Services
from rolecall.runtime.settings_reload import Reread
from rolecall.settings import Settings

log = logging.getLogger(__name__)


def create_app(
    services: Services,
    inference: Inference,
    reload: Callable[[], Awaitable[Reread]],
    keys: Keys | None = None,
    more: Iterable[ScopedRoute] = (),
) -> Starlette:
    """Return the ASGI application. ``reload`` reads registry and settings again; without ``keys`` nobody needs one.

    ``more`` are the routes of the rooms above.
    """
    table = routes(
        services, inference, reload, created=int(time.time()), key_problem=lambda: keys.store.problem if keys else None
    )
    table = [*more, *table]  # a model may be called `x/output`, but what a path says is what it does
    app = Starlette(
        routes=table,
        exception_handlers={RolecallError: _answer, HTTPException: _http_error, ClientGone: _gone, Exception: _bug},
    )
    # A redirect would be built from the Host header, which is the client's to choose.
    app.router.redirect_slashes = False
    # Around all of it, Starlette's own answer to a bug included.
    way = Shortcut(inference, INFERENCE_PATHS, RequestId(app.build_middleware_stack()))
    app.middleware_stack = BehindProxies(Door(way, *_allowed(services.settings), needed_scope(table), keys))
    return app


class BehindProxies:
    """Learns who is calling from a reverse proxy on this machine; the other requests need not be looked through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")  # as uvicorn itself would read it
        self._proxied = ProxyHeadersMiddleware(app, trusted)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and b"x-forwarded-for" in dict(scope["headers"]):
            await self._proxied(scope, receive, send)  # type: ignore[arg-type]
        else:
            await self._app(scope, receive, send)


class Shortcut:
    """Takes the requests for models past Starlette's middleware and routing, which do nothing for them.

    All else, a wrong method on the same path included, is served by ordinary Starlette.
    """

    def __init__(self, inference: ASGIApp, paths: Collection[str], rest: ASGIApp) -> None:
        self._inference = inference
        self._paths = frozenset(paths)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        is_short = scope["type"] == "http" and scope["path"] in self._paths and scope["method"] == "POST"
        await (self._inference if is_short else self._rest)(scope, receive, send)


def _allowed(settings: Settings) -> tuple[AllowedHosts, AllowedOrigins]:
    is_local = is_loopback(settings.host)
    names = [settings.host, *settings.allowed_hosts] if is_local else [*settings.allowed_hosts, *_own_names(settings)]
    return AllowedHosts(names, any_address=not is_local), AllowedOrigins(settings.allowed_origins)


def _own_names(settings: Settings) -> list[str]:
    """Return what this machine is called, as far as that can be a host's name."""
    return [name for name in (settings.host, gethostname(), f"{gethostname()}.local") if is_host_rule(name)]


class RequestId:
    """Puts ``x-request-id`` on answers that have none yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("x-request-id", new_request_id())
            await send(message)

        await self._app(scope, receive, send_with_id if scope["type"] == "http" else send)


async def _answer(_request: Request, error: Exception) -> Json:
    assert isinstance(error, RolecallError)  # noqa: S101 - registered for this class alone
    return Json(error.body(), status_code=error.status, headers=error.headers())


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)  # nobody reads it


async def _http_error(request: Request, error: Exception) -> Json:
    """Starlette's own errors: no such path, wrong method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.scope["path"]
    headers = dict(getattr(error, "headers", None) or {})
    if status == MethodNotAllowed.status:
        headers["Allow"] = allowed = ", ".join(_methods(request))
        known: RolecallError = MethodNotAllowed(f"{path[:200]} does not take {request.method}; it takes {allowed}.")
    else:
        known = not_found(path)
    return Json(error_body(path, known), status_code=known.status, headers=headers)


def _methods(request: Request) -> list[str]:
    """Return what a path takes: a method may have a route of its own, of which Starlette names the first one's."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


async def _bug(_request: Request, error: Exception) -> Json:
    request_id = new_request_id()  # Starlette answers bugs outside of the middleware
    log.error("request %s failed", request_id, exc_info=error)
    known = RolecallError(f"rolecall itself failed; its log on the terminal says why (request {request_id}).")
    return Json(known.body(), status_code=known.status, headers={"x-request-id": request_id})
