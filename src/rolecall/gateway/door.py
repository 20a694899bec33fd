"""The door: in front of everything else, it decides who comes in.

For each request, in this order: does its path mean the same to everybody; is ``Host`` one of ours; may this web page
ask; is it a browser's question beforehand (CORS preflight); whose key is it; does the key have the scope. What is
refused here has cost next to nothing, and what comes in carries its `Caller`. Answers to pages that are allowed say so,
errors and streams as well.

Nothing here, and nothing behind it, decides by ``request.url``, which is made from the ``Host`` header: what counts is
``scope["path"]``.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rolecall.core.error_shapes import error_body
from rolecall.core.hosts import AllowedHosts, AllowedOrigins
from rolecall.core.keys import ApiKey
from rolecall.errors import BadRequest, Forbidden, InvalidApiKey, OriginNotAllowed, RolecallError
from rolecall.gateway.caller import Anyone, Caller, KeyHolder, Stranger, introduce
from rolecall.gateway.request_id import new_request_id
from rolecall.gateway.routes import Need
from rolecall.gateway.wire import WIRE
from rolecall.runtime.api_keys import KeyStore
from rolecall.runtime.usage import UsageBook

log = logging.getLogger(__name__)

_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
"""OpenAI's, Anthropic's and Azure's clients use one of these each."""
_READ = frozenset(
    {b"host", b"origin", b"sec-fetch-site", *_KEY_HEADERS}
    | {b"access-control-request-method", b"access-control-request-headers", b"access-control-request-private-network"}
)
_SEVERAL = b"\0"
"""In place of a header that came more than once; no header can hold that."""
_LONGEST_KEY = 256
"""Bytes; what is longer is no key, and is not looked at."""
_MOST_ASKED_HEADERS = 4096
_PREFLIGHT_S = 600
"""How long a browser may remember the answer to a preflight."""
_SAFE = frozenset({"GET", "HEAD"})
_EXPOSED = ("x-request-id", "retry-after", "x-should-retry")
_OURS = "x-rolecall-"
_REPORT_EVERY_S = 10.0
_ANYONE = Anyone()
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""``$`` of a route's pattern also matches before a line feed: it would answer what looks like no path of ours."""

Headers = dict[bytes, bytes]
Needs = Callable[[Scope], Need | None]
"""The scope that a request needs; None where any key will do, ``open`` where none is needed."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The API keys in force, and what each has used."""

    store: KeyStore
    usage: UsageBook


class Door:
    """Pure ASGI middleware. Without ``keys`` no key is needed, and every caller may do everything."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: AllowedHosts,
        origins: AllowedOrigins,
        needs: Needs,
        keys: Keys | None = None,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._needs = needs
        self._keys = keys
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        origin: bytes | None = None
        try:
            _check_path(scope["path"])
            headers = _headers(scope)
            if b"host" in headers:
                self._hosts.check(headers[b"host"])
            origin = self._page(scope, headers)
            if self._origins:
                send = self._told(send, origin)
                if (wire := scope.get("extensions", {}).get(WIRE)) is not None:  # which goes past it
                    wire.more = partial(_cors, origin=origin)
            if origin is not None and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _answer_preflight(headers, send)
                return
            introduce(scope, self._caller(scope, headers))
        except RolecallError as error:
            self._refusals.note(scope, error)
            await _refuse(error, scope["path"], send)
            return
        await self._app(scope, receive, send)

    def _page(self, scope: Scope, headers: Headers) -> bytes | None:
        """Return the origin of a listed page; None for what is no page, or our own; raises ``OriginNotAllowed``."""
        origin = headers.get(b"origin")
        if origin is None:
            if headers.get(b"sec-fetch-site", b"").lower() == b"cross-site" and not self._is_open(scope):
                raise OriginNotAllowed("A web page of another site sent this request, and did not say which page.")
            return None
        if self._origins.has(origin):
            return origin
        if not (self._origins.is_own(origin, headers.get(b"host", b"")) or self._is_open(scope)):
            raise OriginNotAllowed(
                f"Requests of web pages from {origin[:100].decode('latin-1')!r} are not allowed; who runs this server "
                "can add it to allowed_origins (CHAT_PROXY_ALLOWED_ORIGINS)."
            )
        return None

    def _caller(self, scope: Scope, headers: Headers) -> Caller:
        if self._keys is None:
            return _ANYONE
        try:
            key = _key(self._keys.store, headers)
        except InvalidApiKey:
            if self._is_open(scope):
                return Stranger()
            raise
        needed = self._needs(scope)
        if needed not in {None, "open", *key.scopes}:
            raise Forbidden(
                f"The key {key.name!r} has the scope {' and '.join(key.scopes)}; {scope['method']} "
                f"{scope['path'][:200]} needs {needed}."
            )
        return KeyHolder(key, self._keys.usage)

    def _is_open(self, scope: Scope) -> bool:
        return scope["method"] in _SAFE and self._needs(scope) == "open"

    def _told(self, send: Send, origin: bytes | None) -> Send:
        """Return ``send`` with the headers that let an allowed page read the answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = _cors((name.decode("latin-1") for name, _ in message["headers"]), origin)
                pairs = ((name.encode(), value.encode("latin-1")) for name, value in added.items())
                message["headers"] = [*message["headers"], *pairs]
            await send(message)

        return send_with_headers


class Refusals:
    """Tells on the terminal who is sent away, without letting them fill it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at = -_REPORT_EVERY_S
        self._untold = 0

    def note(self, scope: Scope, error: RolecallError) -> None:
        """Count a refusal; tell of the first, and then of the last one every ten seconds at the most."""
        now = self._clock()
        if now < self._told_at + _REPORT_EVERY_S:
            self._untold += 1
            return
        more = f", and {self._untold} before it" if self._untold else ""
        address = (scope.get("client") or ("unknown",))[0]
        path = f"{scope['method']} {scope['path']}"[:200]
        log.warning("refused %r from %s%s: %d %s", path, address, more, error.status, error.code)
        self._told_at, self._untold = now, 0


def _headers(scope: Scope) -> Headers:
    """Return the headers; raises where one that decides is not there, or there twice."""
    found: Headers = dict(scope["headers"])
    if len(found) == len(scope["headers"]) and b"host" in found:
        return found
    found = {}
    for name, value in scope["headers"]:
        if name in _READ:
            if name not in found:
                found[name] = value
            elif name in _KEY_HEADERS:
                found[name] = _SEVERAL  # of interest only where a key is needed
            else:
                raise BadRequest(f"The request has the header {name.decode()} more than once.")
    # HTTP/1.0 needs none (RFC 9112, 3.2), as some health checks send it, and no browser.
    if b"host" not in found and scope["http_version"] != "1.0":
        raise BadRequest("The request has no Host header; it must name one host, such as localhost:8100.")
    return found


def _check_path(path: str) -> None:
    """Raise ``BadRequest`` for a path with control characters."""
    if _CONTROLS.search(path):
        raise BadRequest("The path has a control character, such as a line feed (%0A); no path of this server has one.")


def _key(store: KeyStore, headers: Headers) -> ApiKey:
    """Return the key that a request came with; raises ``InvalidApiKey``, which never repeats what came."""
    tokens = {_token(name, headers[name]) for name in _KEY_HEADERS if name in headers}
    if not tokens:
        raise InvalidApiKey(
            "This server needs an API key: send it as `Authorization: Bearer KEY`, x-api-key or api-key. "
            "Who runs the server makes one with `rolecall keys add NAME`."
        )
    if len(tokens) > 1:
        raise InvalidApiKey("The request has several API keys that differ; send one.")
    (token,) = tokens
    key = store.ring.find(token) if 0 < len(token) <= _LONGEST_KEY else None
    if key is None:
        raise InvalidApiKey("The API key is not one of this server's; it may have been revoked.")
    if key.is_expired(datetime.now(timezone.utc)):
        raise InvalidApiKey(f"The API key {key.name!r} has expired.")
    return key


def _token(name: bytes, value: bytes) -> bytes:
    if value is _SEVERAL:
        raise InvalidApiKey(f"The request has the header {name.decode()} more than once; send one.")
    if name != b"authorization":
        return value.strip()
    scheme, _, token = value.strip().partition(b" ")
    if scheme.lower() != b"bearer":
        raise InvalidApiKey("The Authorization header must be `Bearer KEY`.")
    return token.strip()


async def _refuse(error: RolecallError, path: str, send: Send) -> None:
    body = orjson.dumps(error_body(path, error))
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    headers = [(name.encode(), value.encode()) for name, value in pairs.items()]
    headers.append((b"x-request-id", new_request_id().encode()))
    if isinstance(error, OriginNotAllowed):
        headers.append((b"vary", b"Origin"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _cors(names: Iterable[str], origin: bytes | None) -> dict[str, str]:
    """Return what lets an allowed page read an answer with headers of these names."""
    added = {"vary": "Origin"}
    if origin is not None:
        ours = {name.lower() for name in names if name.lower().startswith(_OURS)}
        added["access-control-allow-origin"] = origin.decode("latin-1")
        added["access-control-expose-headers"] = ", ".join([*_EXPOSED, *sorted(ours)])
    return added


async def _answer_preflight(headers: Headers, send: Send) -> None:
    """Say that an allowed page may send what it wants to; whether that works is for the request itself to find out."""
    asked = headers.get(b"access-control-request-headers", b"")[:_MOST_ASKED_HEADERS]
    answer = [
        (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
        (b"access-control-max-age", str(_PREFLIGHT_S).encode()),
        (b"vary", b"Access-Control-Request-Headers"),
        (b"x-request-id", new_request_id().encode()),
    ]
    if asked:
        answer.append((b"access-control-allow-headers", asked))
    if headers.get(b"access-control-request-private-network", b"").lower() == b"true":
        answer.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
