"""Questions to a running engine over its own interface, beside the requests that it answers: none of them may fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from rolecall.backends.base import Upstream
from rolecall.gateway.body import write_json

log = logging.getLogger(__name__)

_ABSENT = frozenset({httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED, httpx.codes.NOT_IMPLEMENTED})


@dataclass(frozen=True, slots=True)
class Said:
    """An engine's answer: its status, and the JSON of a 200; None for another status, and for what is no JSON."""

    status: int
    value: Any = None

    @property
    def is_absent(self) -> bool:
        """Whether the engine has no such page."""
        return self.status in _ABSENT

    @property
    def is_failure(self) -> bool:
        """Whether the engine may say something else another time."""
        return self.status >= httpx.codes.INTERNAL_SERVER_ERROR and not self.is_absent


async def ask(
    http: httpx.AsyncClient, upstream: Upstream, path: str, body: Mapping[str, Any] | None = None
) -> Said | None:
    """Return what the engine says at a path, to a body or to none; None if it says nothing at all.

    It waits for as long as that takes: whoever asks sets the time limit.
    """
    url, headers = upstream.url(path), {"connection": "close"}
    if (authorization := upstream.authorization()) is not None:
        headers["authorization"] = authorization
    try:
        if body is None:
            response = await http.get(url, headers=headers, timeout=None)
        else:
            headers["content-type"] = "application/json"
            content = bytes(await write_json(body))
            response = await http.post(url, content=content, headers=headers, timeout=None)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, AttributeError) as error:
        # AttributeError is anyio's, of a connection that was lost in the moment in which it was made.
        log.debug("no answer from %s: %s", path, type(error).__name__)
        return None
    return Said(response.status_code, _json(response))


def field(value: Any, name: str) -> Any:
    """Return a field of what an engine said; None if it is not there."""
    return value.get(name) if isinstance(value, dict) else None


def number(value: Any, name: str) -> int | None:
    """Return a field that holds a whole number above 0; None if it holds anything else."""
    found = field(value, name)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _json(response: httpx.Response) -> Any:
    try:
        return orjson.loads(response.content) if response.status_code == httpx.codes.OK else None
    except orjson.JSONDecodeError:
        return None
