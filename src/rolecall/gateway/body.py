"""The request's body: received within limits, parsed into an object."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import orjson
from starlette.types import Message, Receive

from rolecall.errors import BadRequest, BodyTooLarge, UnsupportedMediaType, UpstreamError
from rolecall.gateway import large_json
from rolecall.gateway.http_request import Pieces
from rolecall.gateway.large_json import BLOCK_BYTES, LARGE_BYTES, TURN_S, LargeBody, is_large

T = TypeVar("T")

_DISCARD_LIMIT_BYTES = 2**30
_DISCARD_LIMIT_S = 1.0
"""Enough for what is on its way already; for the rest the connection stays open a while after its answer."""
_QUOTED_BYTES = 300
MAX_JSON_VALUES = 1_000_000
MAX_JSON_TEXTS = 120_000
MAX_JSON_NAMES = 60_000
MAX_JSON_CONTAINERS = 60_000
"""More would hold up every other request while they are read: orjson needs some 20 ms for a million numbers, 5 for
these texts, 12 for these names if each is another one, 7 for objects that hold something; on a busy machine several
times as much.

Text and images of any size are one value. Names of fields are texts. 10,000 messages have at most some 55,000 names.
"""
_FEW_BYTES = min(MAX_JSON_VALUES, MAX_JSON_TEXTS, MAX_JSON_NAMES, MAX_JSON_CONTAINERS)
"""So many hold too much of nothing."""
MAX_JSON_DEPTH = 250
"""orjson reads 1024 levels and writes 254; some of them are left for what is put around a body."""
_BOM = b"\xef\xbb\xbf"
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[{,:"'))
_TURN_AFTER_S = 0.001
"""How long is counted before others have their turn."""


class ClientGone(Exception):
    """Nobody is there to take the answer."""

    def __init__(self, message: str = "the client closed its connection") -> None:
        super().__init__(message)


class BodyBuffer:
    """Takes a body in as it comes: a small one is put together, of a large one what makes it large is cut out."""

    def __init__(self, limit: int, setting: str | None = "max_body_bytes") -> None:
        self._limit = limit
        self._setting = setting
        self._parts: list[bytes] = []
        self._waiting = self._size = 0
        self._large: LargeBody | None = None

    def add(self, part: bytes) -> None:
        """Take in the next part; raises ``BodyTooLarge``."""
        self._size += len(part)
        self._waiting += len(part)
        if self._size > self._limit:
            self._parts, self._large = [], None
            raise _too_large(self._size, self._limit, self._setting)
        self._parts.append(part)
        if self._size >= LARGE_BYTES and self._waiting >= BLOCK_BYTES:
            self._large = self._large or LargeBody()
            self._large.add(self._joined())

    def take(self) -> bytes | LargeBody:
        """Return all of it."""
        if self._large is None:
            return self._joined()
        if self._waiting:
            self._large.add(self._joined())
        return self._large

    def _joined(self) -> bytes:
        block = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._waiting = [], 0
        return block


async def receive_body(
    headers: Mapping[bytes, bytes],
    receive: Receive,
    limit: int,
    come: bytes | None = None,
    setting: str | None = "max_body_bytes",
) -> bytes | LargeBody:
    """Return the whole body, which is called plain JSON; ``come`` is all of it if it has come already.

    ``setting`` is where the limit comes from, None if it is fixed.

    Raises ``BodyTooLarge`` above ``limit`` bytes, ``UnsupportedMediaType`` if it is called something else,
    ``ClientGone`` if the client leaves.

    A body that is too large is refused at once. Its client, which may look for an answer only after it has sent all,
    can go on sending: the connection reads on for a while after an answer that came early.
    """
    if come is not None:
        if len(come) > limit:
            raise _too_large(len(come), limit, setting)
        body: bytes | LargeBody = come
    else:
        body = await _receive_whole(headers, receive, limit, setting)
    check_is_plain(headers)
    check_is_json(headers)
    return body


async def _receive_whole(
    headers: Mapping[bytes, bytes], receive: Receive, limit: int, setting: str | None
) -> bytes | LargeBody:
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(int(declared), limit, setting)
    buffer = BodyBuffer(limit, setting)
    while True:
        message = await _next(receive)
        buffer.add(message.get("body", b""))
        if not message.get("more_body"):
            return buffer.take()


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
    if b"content-encoding" not in headers:
        return
    coding = headers[b"content-encoding"].strip().lower()
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
    if given == b"application/json":
        return
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

    It ends after 1 GiB or a second. Nothing is read of one that asked ``Expect: 100-continue``: its client waits for
    the answer. Raises ``ClientGone``.
    """
    if headers.get(b"expect", b"").lower() == b"100-continue":
        return False
    size = 0
    with anyio.move_on_after(_DISCARD_LIMIT_S):
        while size < _DISCARD_LIMIT_BYTES:
            message = await _next(receive)
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                return True
    return False


def _too_large(size: int, limit: int, setting: str | None) -> BodyTooLarge:
    named = f" (setting {setting})" if setting else ""
    return BodyTooLarge(f"The body has {size} bytes or more; the limit is {limit}{named}.")


async def aside(size: int, work: Callable[[], T]) -> T:
    """Return what ``work`` on a body of ``size`` bytes returns, and let others run meanwhile if that is large."""
    return work() if size < LARGE_BYTES else await anyio.to_thread.run_sync(work)


def work_of(body: bytes | LargeBody) -> int:
    """Return the bytes that reading it goes through."""
    return len(body) if isinstance(body, bytes) else body.rest_bytes


async def read_json(body: bytes | LargeBody, *, in_full: bool = True) -> Any:
    """Return the parsed body as ``parse_json`` does, and let others run while a large one is parsed."""
    if isinstance(body, bytes) and len(body) < LARGE_BYTES:
        return parse_json(body)
    return await aside(work_of(body), lambda: parse_json(body, in_full=in_full))


async def write_json(body: Mapping[str, Any]) -> bytes | Pieces:
    """Return the body for the engine, and let others run while a large one is written.

    Raises ``BadRequest`` for one that can be read but not be written.
    """
    if is_large(body):
        return await anyio.to_thread.run_sync(_dump, body, large_json.dumps)
    return _dump(body, large_json.dumps)


def parse_json(body: bytes | LargeBody, *, in_full: bool = True) -> Any:
    """Return the parsed body, unless ``in_full`` with ``LongText`` where media stand.

    Raises ``BadRequest`` saying what is wrong, also for one nested too deeply.

    Of fields that are there twice the last one counts, for the engine too. A whole number beyond 64 bits becomes the
    nearest float.
    """
    if isinstance(body, bytes):
        body = body.removeprefix(_BOM)
        if not body:
            raise BadRequest("The body is empty; it must be a JSON object.")
        if len(body) <= _FEW_BYTES:
            return _loaded(orjson.loads, body, body.count(b"[") + body.count(b"{"))
        if len(body) >= LARGE_BYTES:
            body = large_json.in_blocks(body)
    containers = _check_counts([body] if isinstance(body, bytes) else body.rest)
    with _without_collection():
        if isinstance(body, bytes):
            return _loaded(orjson.loads, body, containers)
        return _loaded(partial(LargeBody.parsed, in_full=in_full), body, containers)


def _loaded(loads: Callable[[T], Any], body: T, containers: int) -> Any:
    try:
        value = loads(body)
    except (orjson.JSONDecodeError, large_json.NotJson) as error:
        if "depth limit" in str(error):
            raise _too_deep() from None
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    if containers > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise _too_deep()
    return value


def _check_counts(parts: Sequence[bytes]) -> int:
    """Return how many lists and objects there are at most; raises ``BadRequest`` for a body that takes long to read."""
    counts = _Counts()
    for part in _in_turns(parts):
        counts.add(part.count(b'"'), part)
        if counts.excess():  # by what stands in texts, perhaps
            counts = _counts_outside_texts(parts)
            break
    if excess := counts.excess():
        raise BadRequest(f"The body holds too many {excess} can be read.")
    return counts.containers


@dataclass(slots=True)
class _Counts:
    """What was counted so far of what takes long to read."""

    containers: int = 0
    quotes: int = 0
    names: int = 0
    values: int = 0

    def add(self, quotes: int, marks: bytes) -> None:
        """Count the marks of JSON in some bytes, which hold so many quotation marks."""
        names = marks.count(b":")
        self.containers += marks.count(b"[") + marks.count(b"{")
        self.quotes += quotes
        self.names += names
        self.values += marks.count(b",") + names

    def excess(self) -> str | None:
        """Return what there is too much of, and its limit."""
        counted = (
            (self.containers, MAX_JSON_CONTAINERS, "lists and objects"),
            (self.quotes // 2, MAX_JSON_TEXTS, "texts"),
            (self.names, MAX_JSON_NAMES, "names of fields"),
            (self.values, MAX_JSON_VALUES, "values"),
        )
        return next((f"{what}; {limit}" for count, limit, what in counted if count > limit), None)


def _counts_outside_texts(parts: Sequence[bytes]) -> _Counts:
    """Count what is not within texts: a document of JSON or source code in a prompt is one text.

    It ends where there is too much.
    """
    counts = _Counts()
    for part in _in_turns(parts):
        plain = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = plain.translate(None, _NO_STRUCTURE).split(b'"')
        counts.add(len(pieces) - 1, b"".join(pieces[counts.quotes % 2 :: 2]))
        if counts.excess():
            break
    return counts


def _in_turns(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the parts of a body; what is escaped stays with what escapes it. Others have their turn between them.

    Nobody has it while a small body is read, which is done on the event loop itself.
    """
    is_aside = sum(map(len, parts)) >= LARGE_BYTES
    since = time.perf_counter()
    escape = b""
    for each in parts:
        part = escape + each
        escape = b"\\" * ((len(part) - len(part.rstrip(b"\\"))) % 2)
        yield part[: len(part) - len(escape)]
        if is_aside and time.perf_counter() - since > _TURN_AFTER_S:
            time.sleep(TURN_S)
            since = time.perf_counter()


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
    """Return a small body for the engine; raises as ``write_json`` does."""
    return _dump(body, orjson.dumps)


def _dump(body: Mapping[str, Any], dumps: Callable[[Any], T]) -> T:
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
