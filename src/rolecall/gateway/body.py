"""The request's body: received within limits, parsed into an object."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import orjson
from starlette.types import Message, Receive, Scope

from rolecall.errors import BadRequest, BodyTooLarge, UnsupportedMediaType, UpstreamError
from rolecall.gateway import large_json
from rolecall.gateway.large_json import LARGE_BYTES, is_large

T = TypeVar("T")

_DISCARD_LIMIT_BYTES = 2**30
_DISCARD_LIMIT_S = 30.0
_QUOTED_BYTES = 300
MAX_JSON_VALUES = 1_000_000
MAX_JSON_TEXTS = 200_000
MAX_JSON_CONTAINERS = 100_000
"""More would hold up every other request while they are read: a list or an object costs some ten times what a number
does.

Text and images of any size are one value. Names of fields are texts.
"""
MAX_JSON_DEPTH = 250
"""orjson reads 1024 levels and writes 254; some of them are left for what is put around a body."""
_BOM = b"\xef\xbb\xbf"
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[{,:"'))
_STEP = 2**20
_JOINED_BYTES = 4 * 2**20


class ClientGone(Exception):
    """Nobody is there to take the answer."""

    def __init__(self, message: str = "the client closed its connection") -> None:
        super().__init__(message)


async def receive_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the whole body, which is called plain JSON.

    Raises ``BodyTooLarge`` above ``limit`` bytes, ``UnsupportedMediaType`` if it is called something else,
    ``ClientGone`` if the client leaves.

    A body that is too large is read to its end all the same, up to 1 GiB or 30 s: most clients look for an answer only
    after they have sent everything. One that asked ``Expect: 100-continue`` is answered at once.
    """
    headers = dict(scope["headers"])
    declared = headers.get(b"content-length", b"")
    parts: list[bytes] = []
    size = 0
    if declared.isdigit() and int(declared) > limit:
        await discard_body(headers, receive)
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
            check_is_plain(headers)
            check_is_json(headers)
            if size > _JOINED_BYTES:
                return await anyio.to_thread.run_sync(b"".join, parts)  # which lets others run meanwhile
            return b"".join(parts) if len(parts) > 1 else parts[0]


async def receive_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the parts of a body as they come; raises ``ClientGone`` if the client leaves before the end."""
    while True:
        message = await _next(receive)
        if chunk := message.get("body", b""):
            yield chunk
        if not message.get("more_body"):
            return


def check_is_plain(headers: Mapping[bytes, bytes]) -> None:
    """Raise ``UnsupportedMediaType`` for a compressed body: a small one may become a huge one."""
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding not in {b"identity", b""}:
        raise UnsupportedMediaType(
            f"The body has the content-encoding {_quoted(coding)}; rolecall reads bodies that are not compressed."
        )


def check_is_json(headers: Mapping[bytes, bytes]) -> None:
    """Raise ``UnsupportedMediaType`` unless the body is called JSON.

    What is not called so a web page may send from any site without asking: browsers ask first (CORS) for
    ``application/json`` alone. That holds for a body without a type, too.
    """
    given = headers.get(b"content-type", b"")
    kind = given.partition(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        problem = f"is {_quoted(given)}" if given else "is missing"
        raise UnsupportedMediaType(
            f"The header content-type {problem}; it must be application/json "
            "(with curl: -H 'content-type: application/json')."
        )


def _quoted(value: bytes) -> str:
    return repr(value[:_QUOTED_BYTES].decode("latin-1"))


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


async def discard_body(headers: Mapping[bytes, bytes], receive: Receive) -> bool:
    """Read a refused body that nobody has begun to read; return whether that was all of it.

    It ends after 1 GiB or 30 s. Nothing is read of one that asked ``Expect: 100-continue``: its client waits for the
    answer. Raises ``ClientGone``.
    """
    if headers.get(b"expect", b"").lower() == b"100-continue":
        return False
    return await _discard(receive)


async def _discard(receive: Receive) -> bool:
    size = 0
    with anyio.move_on_after(_DISCARD_LIMIT_S):
        while size < _DISCARD_LIMIT_BYTES:
            message = await _next(receive)
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                return True
    return False


def _too_large(size: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body has {size} bytes or more; the limit is {limit} (setting max_body_bytes).")


async def aside(size: int, work: Callable[[], T]) -> T:
    """Return what ``work`` on a body of ``size`` bytes returns, and let others run meanwhile if that is large."""
    return work() if size < LARGE_BYTES else await anyio.to_thread.run_sync(work)


async def read_json(body: bytes) -> Any:
    """Return the parsed body as ``parse_json`` does, and let others run while a large one is parsed."""
    return await aside(len(body), lambda: parse_json(body))


async def write_json(body: Mapping[str, Any]) -> bytes:
    """Return the body for the engine as ``dump_json`` does, and let others run while a large one is written."""
    return await anyio.to_thread.run_sync(_dump, body, large_json.dumps) if is_large(body) else dump_json(body)


def parse_json(body: bytes) -> Any:
    """Return the parsed body; raises ``BadRequest`` saying what is wrong, also for one nested too deeply.

    Of fields that are there twice the last one counts, for the engine too. A whole number beyond 64 bits becomes the
    nearest float.
    """
    body = body.removeprefix(_BOM)
    if not body:
        raise BadRequest("The body is empty; it must be a JSON object.")
    containers = _check_counts(body)
    try:
        with _without_collection():
            value = orjson.loads(body) if len(body) < LARGE_BYTES else large_json.loads(body)
    except (orjson.JSONDecodeError, large_json.NotJson) as error:
        if "depth limit" in str(error):
            raise _too_deep() from None
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    if containers > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise _too_deep()
    return value


def _check_counts(body: bytes) -> int:
    """Return how many lists and objects there are at most; raises ``BadRequest`` for a body that takes long to read."""
    counts = _Counts(*(_count(body, marks) for marks in (b"[{", b'"', b",:")))
    if counts.are_too_high():  # by what stands in texts, perhaps
        counts = _count_outside_texts(body)
    if counts.containers > MAX_JSON_CONTAINERS:
        raise BadRequest(f"The body holds too many lists and objects; {MAX_JSON_CONTAINERS} can be read.")
    if counts.quotes > 2 * MAX_JSON_TEXTS:
        raise BadRequest(f"The body holds too many texts; {MAX_JSON_TEXTS} can be read.")
    if counts.values > MAX_JSON_VALUES:
        raise BadRequest(f"The body holds too many values; {MAX_JSON_VALUES} can be read.")
    return counts.containers


class _Counts(NamedTuple):
    containers: int
    quotes: int
    values: int

    def are_too_high(self) -> bool:
        return (
            self.containers > MAX_JSON_CONTAINERS or self.quotes > 2 * MAX_JSON_TEXTS or self.values > MAX_JSON_VALUES
        )


def _count(body: bytes, marks: bytes) -> int:
    """Count in steps: others may run in between."""
    return sum(body.count(mark, at, at + _STEP) for mark in marks for at in range(0, len(body), _STEP))


def _count_outside_texts(body: bytes) -> _Counts:
    """Count what is not within texts: a document of JSON or source code in a prompt is one text."""
    containers = quotes = values = at = 0
    while at < len(body):
        end = at + _STEP
        while body[end - 1 : end] == b"\\":  # what is escaped stays with what escapes it
            end += 1
        part = body[at:end].replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.translate(None, _NO_STRUCTURE).split(b'"')
        outside = b"".join(pieces[quotes % 2 :: 2])
        quotes += len(pieces) - 1
        containers += outside.count(b"[") + outside.count(b"{")
        values += outside.count(b",") + outside.count(b":")
        at = end
    return _Counts(containers, quotes, values)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector from looking through what is being built, again and again: it doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects lie in each other more than ``limit`` deep."""
    level = [value]
    for _ in range(limit):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _too_deep() -> BadRequest:
    return BadRequest(f"The body is nested too deeply; {MAX_JSON_DEPTH} levels can be passed on.")


def dump_json(body: Mapping[str, Any]) -> bytes:
    """Return the body for the engine; raises ``BadRequest`` for one that can be read but not be written."""
    return _dump(body, orjson.dumps)


def _dump(body: Mapping[str, Any], dumps: Callable[[Any], bytes]) -> bytes:
    try:
        return dumps(body)
    except orjson.JSONEncodeError:
        raise _too_deep() from None


def parse_answer(status: int, body: bytes) -> Any:
    """Return an engine's parsed answer; raises ``UpstreamError`` with its beginning for one that is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        said = " ".join(body[:_QUOTED_BYTES].decode(errors="replace").split()) or "nothing"
        problem = f"The engine's answer (status {status}) is not JSON"
        error = UpstreamError(f"{problem}: {said}")
        error.discreet = f"{problem} ({len(body)} bytes)."
        raise error from None


async def wait_until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection; to be awaited once the body is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass
