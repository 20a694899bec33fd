"""The pages of the server: plain HTML, CSS and JavaScript modules, served as they stand in the package.

They need no key: a page asks for one itself, keeps it for its tab, and sends it as a header. All that it shows comes
from the API by then. The policy that goes with each file lets nothing in from elsewhere, and nothing out. A file is
read when it is first asked for: a server whose pages nobody opens holds nothing of them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from rolecall.errors import NotFound
from rolecall.gateway.routes import ScopedRoute
from rolecall.gateway.server import Addition, Gateway

_FOLDER = Path(__file__).parent / "static"
HOME = "/ui"
_DASHBOARD = "dashboard.html"
PAGES = {
    HOME: _DASHBOARD,
    "/ui/requests": _DASHBOARD,  # one page, whose script shows what its address says
    "/ui/playground": _DASHBOARD,
    "/ui/datasets": "datasets.html",
}
"""Address of each page, and its file."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Thumbnails are fetched with the key in a header, and shown as blobs."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class BrowserRoute(ScopedRoute):
    """Answers browsers alone, which say that they take HTML; for all other clients it is as if it were not there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether this route answers, as Starlette asks it."""
        if scope["type"] != "http" or b"text/html" not in dict(scope["headers"]).get(b"accept", b""):
            return Match.NONE, {}
        return super().matches(scope)


@contextlib.asynccontextmanager
async def pages(_gateway: Gateway) -> AsyncIterator[Addition]:
    """Add the pages to a gateway."""
    yield Addition(tuple(page_routes()), lambda: None)


def page_routes() -> list[ScopedRoute]:
    """Return the routes of the pages and of the files that they need."""

    async def page(request: Request) -> Response:
        return _answer(request, PAGES[request.scope["path"]])

    async def file(request: Request) -> Response:
        return _answer(request, request.path_params["name"])

    async def home(_request: Request) -> Response:
        return Response(status_code=307, headers={**_HEADERS, "location": HOME, "vary": "accept"})

    async def slash(request: Request) -> Response:
        query = request.scope["query_string"].decode("latin-1")
        address = request.scope["path"].rstrip("/") + (f"?{query}" if query else "")
        return Response(status_code=307, headers={**_HEADERS, "location": address})

    return [
        *(ScopedRoute(path, page, methods=["GET"], need="open") for path in PAGES),
        ScopedRoute("/ui/static/{name:path}", file, methods=["GET"], need="open"),
        BrowserRoute("/", home, methods=["GET"], need="open"),
        *(ScopedRoute(f"{path}/", slash, methods=["GET"], need="open") for path in PAGES),
    ]


def _answer(request: Request, name: str) -> Response:
    """Return a file of the package; raises ``NotFound``."""
    data, tag = _read(name)
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=_TYPES[PurePosixPath(name).suffix], headers=headers)


@lru_cache(maxsize=128)
def _read(name: str) -> tuple[bytes, str]:
    parts = name.split("/")
    path = _FOLDER.joinpath(*parts)
    is_plain = all(part and not part.startswith(".") and "\\" not in part and "\0" not in part for part in parts)
    if not is_plain or path.suffix not in _TYPES or not path.is_file():
        raise NotFound(f"There is no file {name[:100]!r} of a page here.")
    data = path.read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:24]}"'
