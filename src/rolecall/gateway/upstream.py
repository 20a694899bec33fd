"""The one seam between the gateway and an engine's HTTP: ``post`` gives status, headers, the body and ``close``."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, Protocol

import anyio
import httpcore
import httpx

from rolecall.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from rolecall.gateway.http_request import Pieces, not_allowed

CONNECT_TIMEOUT_S = 10.0
UNREACHABLE = "The engine cannot be reached"
"""How each message of ``UpstreamUnreachable`` begins: `unreachable` puts in which engine it is."""
LOST_AT_ONCE = f"{UNREACHABLE}: the connection was lost at once."
_HIDDEN = b"[API key]"


Take = Callable[[bytes], bool]
"""Is given the parts of a body; returns whether the next may follow at once."""


class UpstreamResponse(Protocol):
    """An answer whose head has come. Its body is taken by ``chunks`` or by ``pipe``."""

    status: int
    headers: Mapping[str, str]
    _rest: AsyncIterator[bytes] | None = None

    def chunks(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises ``UpstreamTimeout`` after a pause of ``idle_timeout_s``, ``UpstreamError`` when it breaks off.
        """
        ...

    def at_hand(self) -> bytes | None:
        """Return the body of an answer that is no error if all of it has come already; then there are no chunks."""
        return None

    async def pipe(self, take: Take, idle_timeout_s: float) -> bool:
        """Give the body to ``take``, as it comes, until that wants no more; return whether the end has come.

        Raises as ``chunks`` does, and what ``take`` raises. May be called again for the rest.
        """
        self._rest = self._rest or self.chunks(idle_timeout_s)
        async for chunk in self._rest:
            if not take(chunk):
                return False
        return True

    def leave(self) -> None:
        """Let go of an answer of which all that matters has come: its connection may be of use for others."""
        return

    async def close(self) -> None:
        """Close the connection, which tells the engine to stop; harmless when the answer is complete."""
        ...


class Transport(Protocol):
    """Sends requests to engines."""

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes], *, head_timeout_s: float
    ) -> Coroutine[Any, Any, UpstreamResponse]:
        """Send a request and wait for the head; raises ``UpstreamError`` or ``UpstreamTimeout``."""
        ...


class _Parts:
    """A body in parts of which each is sent before the next one is looked at.

    It lets go of the whole once the answer begins: httpx's request is part of a cycle, and megabytes would wait in it
    for the garbage collector.
    """

    def __init__(self, body: Pieces) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the parts."""
        async for part in self._body:
            yield part

    def let_go(self) -> None:
        """Hold nothing any more."""
        self._body = Pieces(())


class _Closing:
    """Closes to the end what has to be closed, even if whoever asked for it is cancelled while waiting for that."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        """Begin to close."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Close, and be cancelled only when that is done."""
        task = self.begin(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    async def end(self) -> None:
        """Wait until all is closed."""
        if self._tasks:
            await asyncio.wait(self._tasks)


class _Connector(httpcore.AnyIOBackend):
    """Makes connections; one whose request is cancelled in the moment in which it is made is closed: anyio loses it."""

    def __init__(self, closing: _Closing) -> None:
        self._closing = closing

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """Connect, as httpcore asks for it."""
        connecting = asyncio.ensure_future(super().connect_tcp(*args, **kwargs))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._close)
            raise

    def _close(self, connected: asyncio.Future[httpcore.AsyncNetworkStream]) -> None:
        if not connected.cancelled() and connected.exception() is None:
            self._closing.begin(connected.result().aclose())


class _NewConnections(httpx.AsyncBaseTransport):
    """A connection for each request, closed if the request is cancelled at any time.

    In a common pool httpcore forgets one that was made and not used yet. Nobody reads from it or closes it: the engine
    takes it for a client, and we run out of files.
    """

    def __init__(self, closing: _Closing) -> None:
        self._closing = closing
        self._connector = _Connector(closing)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context(trust_env=False)  # costs as much as many requests

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a connection of its own."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(verify=self._tls, limits=limits, trust_env=False)
        transport._pool._network_backend = self._connector  # noqa: SLF001 - httpx has no argument for it
        try:
            return await transport.handle_async_request(request)
        except BaseException:
            await self._closing.to_the_end(transport.aclose())
            raise


class HttpxTransport:
    """Over httpx, with a new connection for each request.

    A connection that is not kept cannot be stale, and is closed before its engine is stopped, without which
    llama-server takes up to 45 s to end. Time limits are anyio's: before Python 3.12 ``asyncio.wait_for`` can swallow
    the cancellation by which a client's leaving is passed on.
    """

    def __init__(self, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._closing = _Closing()
        timeout = httpx.Timeout(None, connect=connect_timeout_s)
        self._client = httpx.AsyncClient(
            transport=_NewConnections(self._closing), timeout=timeout, follow_redirects=False, trust_env=False
        )

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes], *, head_timeout_s: float
    ) -> UpstreamResponse:
        """Send a request and wait for the head."""
        whole = Pieces([body]) if isinstance(body, bytes) else body
        parts = _Parts(whole) if isinstance(whole, Pieces) else whole
        try:
            request = self._client.build_request("POST", url, headers=dict(headers), content=parts)
            with anyio.fail_after(head_timeout_s):
                response = await self._client.send(request, stream=True)
        except TimeoutError:
            raise UpstreamTimeout(late(head_timeout_s)) from None
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
            # httpx would quote the header.
            raise not_allowed() from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UpstreamUnreachable(f"{UNREACHABLE}: {_reason(error)}.") from error
        except (OSError, AttributeError) as error:
            # AttributeError is anyio's, of a connection that was lost in the moment in which it was made.
            raise UpstreamUnreachable(LOST_AT_ONCE) from error
        except httpx.HTTPError as error:
            raise UpstreamError(f"The engine broke off before it answered: {_reason(error)}.") from error
        finally:
            if isinstance(parts, _Parts):
                parts.let_go()
        self._client.cookies.clear()  # nothing of one answer goes along with another request
        return HttpxResponse(response, self._closing, secret=secret_of(headers))

    async def aclose(self) -> None:
        """Close what is open."""
        await self._closing.end()
        await self._client.aclose()


class HttpxResponse(UpstreamResponse):
    """An answer over httpx. ``secret`` is the server's key: an error that quotes it is for neither client nor log."""

    def __init__(self, response: httpx.Response, closing: _Closing, *, secret: bytes = b"") -> None:
        self._closing = closing
        self._secret = secret
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._response = response

    async def chunks(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the body's bytes unchanged; those of an error as a whole, without the key."""
        raw = self._raw(idle_timeout_s)
        async for chunk in raw if self.status < 400 else without_secret(raw, self._secret):
            yield chunk

    async def _raw(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        stream = self._response.aiter_raw()
        while True:
            try:
                with anyio.fail_after(idle_timeout_s):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise UpstreamTimeout(f"The engine sent nothing for {idle_timeout_s:g} s.") from None
            except httpx.HTTPError as error:
                raise UpstreamError(f"The engine broke off in the middle of its answer: {_reason(error)}.") from error
            if chunk is None:
                return
            yield chunk

    async def close(self) -> None:
        """Close the connection."""
        await self._closing.to_the_end(self._close())

    async def _close(self) -> None:
        with suppress(httpx.HTTPError):
            await self._response.aclose()
        self._response.stream = httpx.ByteStream(b"")  # which referred back to the response


async def without_secret(chunks: AsyncIterator[bytes], secret: bytes) -> AsyncIterator[bytes]:
    """Yield an error's body as a whole, without the key; unchanged if there is none."""
    whole = b"".join([chunk async for chunk in chunks])
    yield whole.replace(secret, _HIDDEN) if secret else whole


@lru_cache(maxsize=16)
def late(head_timeout_s: float) -> str:
    """Return what is said of an engine that has not begun to answer in time."""
    return f"The engine sent nothing for {head_timeout_s:g} s (backend_timeout_ms)."


def secret_of(headers: Mapping[str, str]) -> bytes:
    """Return the key that a request shows, if any."""
    return headers.get("authorization", "").removeprefix("Bearer ").encode()


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "it does not take the connection in time"
    return str(error).rstrip(".") or type(error).__name__
