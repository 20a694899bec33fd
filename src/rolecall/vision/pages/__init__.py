"""The pages of the server: plain HTML, CSS and JavaScript modules, served as they stand in the package.

They need no key: a page asks for one itself, keeps it for its tab, and sends it as a header. All that it shows comes
from the API by then. The policy that goes with each file lets nothing in from elsewhere, and nothing out.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from rolecall.errors import NotFound
from rolecall.gateway.routes import ScopedRoute

_FOLDER = Path(__file__).parent / "static"
_PAGES = {"/ui/datasets": "datasets.html"}
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


def page_routes() -> list[ScopedRoute]:
    """Return the routes of the pages and of the files that they need."""

    async def page(request: Request) -> Response:
        return _answer(request, _PAGES[request.scope["path"]])

    async def file(request: Request) -> Response:
        return _answer(request, request.path_params["name"])

    return [
        *(ScopedRoute(path, page, methods=["GET"], need="open") for path in _PAGES),
        ScopedRoute("/ui/static/{name}", file, methods=["GET"], need="open"),
    ]


def _answer(request: Request, name: str) -> Response:
    """Return a file of the package; raises ``NotFound``."""
    data, tag = _read(name)
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=_TYPES[Path(name).suffix], headers=headers)


@lru_cache(maxsize=64)
def _read(name: str) -> tuple[bytes, str]:
    path = _FOLDER / name
    if path.parent != _FOLDER or path.suffix not in _TYPES or not path.is_file():
        raise NotFound(f"There is no file {name[:100]!r} of a page here.")
    data = path.read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:24]}"'
