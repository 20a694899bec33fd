"""The application: routes, errors in OpenAI's shape, a request id on every answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rolecall.errors import MethodNotAllowed, RolecallError
from rolecall.gateway.exchange import new_request_id
from rolecall.gateway.inference import Inference
from rolecall.gateway.routes import Json, not_found, routes
from rolecall.gateway.services import Services

log = logging.getLogger(__name__)


def create_app(services: Services, inference: Inference, reload: Callable[[], None]) -> Starlette:
    """Return the ASGI application. ``reload`` reads the registry again."""
    app = Starlette(
        routes=routes(services, inference, reload, created=int(time.time())),
        middleware=[Middleware(RequestId)],
        exception_handlers={RolecallError: _answer, HTTPException: _http_error, Exception: _bug},
    )
    # A redirect would be built from the Host header, which is the client's to choose.
    app.router.redirect_slashes = False
    return app


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


async def _http_error(request: Request, error: Exception) -> Json:
    """Starlette's own errors: no such path, wrong method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.scope["path"]
    if status == MethodNotAllowed.status:
        allowed = (getattr(error, "headers", None) or {}).get("Allow", "")
        known: RolecallError = MethodNotAllowed(f"{path[:200]} does not take {request.method}; it takes {allowed}.")
    else:
        known = not_found(path)
    return Json(known.body(), status_code=known.status, headers=getattr(error, "headers", None))


async def _bug(_request: Request, error: Exception) -> Json:
    request_id = new_request_id()  # Starlette answers bugs outside of the middleware
    log.error("request %s failed", request_id, exc_info=error)
    known = RolecallError(f"rolecall itself failed; its log on the terminal says why (request {request_id}).")
    return Json(known.body(), status_code=known.status, headers={"x-request-id": request_id})
