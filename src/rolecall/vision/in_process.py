"""rolecall's own inference as an HTTP client sees it, without a connection: same keys, queue, changes and log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Scope

from rolecall.gateway.caller import Caller, introduce

BASE_URL = "http://rolecall.internal"
_GOODBYE_S = 5.0


def client_of(inference: ASGIApp, caller: Caller) -> httpx.AsyncClient:
    """Return a client whose requests ``inference`` serves, on behalf of ``caller``, whose key bounds them.

    ``caller_of(scope)`` is who sent the request that is being served; ``Anyone`` stands for rolecall itself.
    """
    return httpx.AsyncClient(transport=InProcess(inference, caller), base_url=BASE_URL, trust_env=False)


class InProcess(httpx.AsyncBaseTransport):
    """Hands each request to an ASGI application and returns its whole answer.

    Unlike httpx's ``ASGITransport`` it tells the application when the request is cancelled, as a connection would that
    is closed, and waits until that has ended: the engine's work stops, and the log says that the client has left.
    """

    def __init__(self, app: ASGIApp, caller: Caller) -> None:
        self._app = app
        self._caller = caller

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the application's answer."""
        assert isinstance(request.stream, httpx.AsyncByteStream)  # noqa: S101 - all of an AsyncClient are
        exchange = _Exchange(b"".join([part async for part in request.stream]))
        scope = _scope(request)
        introduce(scope, self._caller)
        task = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            exchange.leave()
            await asyncio.wait({task}, timeout=_GOODBYE_S)
            task.cancel()
            raise
        task.result()
        return exchange.response(request)


class _Exchange:
    """What goes in and comes out of the application."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._has_left = asyncio.Event()
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._is_whole = False

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        else:
            self._parts.append(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)

    def leave(self) -> None:
        self._has_left.set()

    def response(self, request: httpx.Request) -> httpx.Response:
        """Return the answer; raises what httpx does for one that broke off."""
        if not self._is_whole:
            raise httpx.RemoteProtocolError("the answer broke off", request=request)
        return httpx.Response(self._status, headers=self._headers, content=b"".join(self._parts), request=request)


def _scope(sent: httpx.Request) -> Scope:
    headers: Mapping[bytes, bytes] = {name.lower(): value for name, value in sent.headers.raw}
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": sent.url.path,
        "raw_path": sent.url.raw_path,
        "query_string": sent.url.query,
        "root_path": "",
        "headers": list(headers.items()),
        "client": ("in-process", 0),
        "server": ("rolecall.internal", 80),
    }
    return scope
