"""The request's body: received within limits, parsed into an object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import orjson
from starlette.types import Message, Receive, Scope

from rolecall.errors import BadRequest, BodyTooLarge, UpstreamError

_DISCARD_LIMIT_BYTES = 2**30
_DISCARD_LIMIT_S = 30.0
_QUOTED_BYTES = 300
MAX_JSON_VALUES = 1_000_000
"""More would hold up every other request for seconds while they are read. Text and images of any size are one value."""


class ClientGone(Exception):
    """Nobody is there to take the answer."""

    def __init__(self, message: str = "the client closed its connection") -> None:
        super().__init__(message)


async def receive_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the whole body; raises ``BodyTooLarge`` above ``limit`` bytes, ``ClientGone`` if the client leaves.

    A body that is too large is read to its end all the same, up to 1 GiB or 30 s: most clients look for an answer only
    after they have sent everything. One that asked ``Expect: 100-continue`` is answered at once.
    """
    headers = dict(scope["headers"])
    declared = headers.get(b"content-length", b"")
    parts: list[bytes] = []
    size = 0
    if declared.isdigit() and int(declared) > limit:
        if headers.get(b"expect", b"").lower() != b"100-continue":
            await _discard(receive)
        raise _too_large(int(declared), limit)
    while True:
        message = await _next(receive)
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            parts.clear()
            if message.get("more_body"):
                await _discard(receive)
            raise _too_large(size, limit)
        parts.append(chunk)
        if not message.get("more_body"):
            return b"".join(parts) if len(parts) > 1 else parts[0]


async def receive_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the parts of a body as they come; raises ``ClientGone`` if the client leaves before the end."""
    while True:
        message = await _next(receive)
        if chunk := message.get("body", b""):
            yield chunk
        if not message.get("more_body"):
            return


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


async def _discard(receive: Receive) -> None:
    size = 0
    with anyio.move_on_after(_DISCARD_LIMIT_S):
        while size < _DISCARD_LIMIT_BYTES:
            message = await _next(receive)
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                return


def _too_large(size: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body has {size} bytes or more; the limit is {limit} (setting max_body_bytes).")


def parse_json(body: bytes) -> Any:
    """Return the parsed body; raises ``BadRequest`` saying what is wrong, also for one nested too deeply."""
    if not body:
        raise BadRequest("The body is empty; it must be a JSON object.")
    if len(body) > MAX_JSON_VALUES and body.count(b",") + body.count(b":") > MAX_JSON_VALUES:
        raise BadRequest(f"The body holds too many values; {MAX_JSON_VALUES} can be read.")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None


def dump_json(body: Mapping[str, Any]) -> bytes:
    """Return the body for the engine; raises ``BadRequest`` for one that can be read but not be written."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        raise BadRequest("The body is nested too deeply; 250 levels can be passed on.") from None


def parse_answer(status: int, body: bytes) -> Any:
    """Return an engine's parsed answer; raises ``UpstreamError`` with its beginning for one that is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        said = " ".join(body[:_QUOTED_BYTES].decode(errors="replace").split()) or "nothing"
        raise UpstreamError(f"The engine's answer (status {status}) is not JSON: {said}") from None


async def wait_until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection; to be awaited once the body is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass
