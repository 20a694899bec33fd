"""The transport to engines on this machine: HTTP/1.1 over connections that are used again.

httpx costs a request more CPU time than all the rest of rolecall: it goes through its whole pool for each start and
end, and parses in Python. Where TLS or another machine is concerned, ``ByAddress`` asks it nevertheless.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import anyio

from rolecall.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from rolecall.gateway.connection import Connection
from rolecall.gateway.http_answer import HttpAnswer
from rolecall.gateway.http_request import PART_BYTES, HttpRequest, http_request, loopback_address
from rolecall.gateway.upstream import (
    CONNECT_TIMEOUT_S,
    LOST_AT_ONCE,
    UNREACHABLE,
    Take,
    Transport,
    UpstreamResponse,
    late,
    secret_of,
    without_secret,
)

IDLE_S = 1.0
"""How long a connection is kept that nobody uses: llama-server, uvicorn and Node close theirs after 5 s."""
MOST_IDLE = 128
"""Kept connections to an address; each takes a thread of llama-server, so the last used is the first used again."""
_BRIEF_S = 0.002
"""What was used so lately is used again without a look at it, which would cost a call of the kernel, a tenth of a
request. Given up for it: an engine that dies within that time, or says something that nobody asked for, is not noticed
before the next request is sent, which then fails or is answered with that."""
_STALE_S = 1.0
"""A connection that its engine had closed breaks at once; one that breaks later broke under the request."""
END_S = 0.1
"""How long the end of an answer may take of which nothing else is missing: llama-server and uvicorn send it apart."""


class LoopbackTransport:
    """Sends requests over kept connections.

    A kept connection may have been closed by its engine in the moment in which it is used. If nothing of an answer came
    the request is sent once more over a new one. Bodies that come in parts cannot be sent twice, and always go over a
    new one. ``total_s`` limits whole answers.
    """

    def __init__(
        self, *, idle_s: float = IDLE_S, most_idle: int = MOST_IDLE, end_s: float = END_S, total_s: float | None = None
    ) -> None:
        self._idle_s = idle_s
        self._most_idle = most_idle
        self._end_s = end_s
        self._total_s = total_s
        self._idle: dict[tuple[str, int], list[Connection]] = {}
        self._loop = asyncio.get_running_loop()
        self._ending: dict[Connection, tuple[str, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes], *, head_timeout_s: float
    ) -> Coroutine[Any, Any, UpstreamResponse]:
        """Send a request and wait for the head; raises ``UpstreamError``, -``Timeout`` and -``Unreachable``."""
        return self.request("POST", url, headers, body, head_timeout_s=head_timeout_s)

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] = b"",
        *,
        head_timeout_s: float,
    ) -> UpstreamResponse:
        """Send a request with any method."""
        request, began = http_request(method, url, headers, body), self._loop.time()
        kept = self._take(request.address.key) if request.can_be_repeated else None
        if kept is None:
            return await self._ask(
                await self._connect(request, head_timeout_s), request, began, head_timeout_s, headers
            )
        try:
            return await self._ask(kept, request, began, head_timeout_s, headers)
        except UpstreamError as error:
            if kept.has_heard or isinstance(error, UpstreamTimeout) or self._loop.time() - began > _STALE_S:
                raise
            try:
                fresh = await self._connect(request, head_timeout_s)
            except UpstreamUnreachable:  # it died of the request, as it seems: nobody may think that nothing was sent
                raise error from None
        return await self._ask(fresh, request, began, head_timeout_s, headers)

    async def _ask(
        self,
        connection: Connection,
        request: HttpRequest,
        began: float,
        head_timeout_s: float,
        headers: Mapping[str, str],
    ) -> UpstreamResponse:
        connection.begin(HttpAnswer(has_body=request.method != "HEAD"))
        too_late = late(head_timeout_s)
        try:
            connection.limit(began + head_timeout_s, too_late)
            if self._total_s is not None:
                connection.limit(
                    began + self._total_s, f"The engine's answer was not complete after {self._total_s:g} s."
                )
            if isinstance(request.body, bytes) and len(request.body) <= PART_BYTES:
                connection.write(request.head + request.body)
            else:
                await self._send(connection, request, began + head_timeout_s, too_late)
            answer = await connection.head()
        except BaseException:
            self.give_back(request.address.key, connection)
            raise
        connection.lift(too_late)
        return LoopbackResponse(connection, answer, self, request.address.key, headers)

    async def _send(self, connection: Connection, request: HttpRequest, until: float, too_late: str) -> None:
        with anyio.move_on_after(until - self._loop.time()) as limited:  # whoever gives the body may not give it
            async with aclosing(request.parts()) as parts:
                await connection.send(parts)
        if limited.cancelled_caught:
            raise UpstreamTimeout(too_late)

    # -- connections

    async def _connect(self, request: HttpRequest, within_s: float) -> Connection:
        """Return a new connection; raises ``UpstreamUnreachable``."""
        host, port = key = request.address.key
        connection = Connection(partial(self._forget, key))
        limit_s = min(CONNECT_TIMEOUT_S, within_s)
        try:
            with anyio.fail_after(limit_s):
                await self._loop.create_connection(lambda: connection, host, port)
        except TimeoutError:
            connection.abort()
            raise UpstreamUnreachable(f"{UNREACHABLE}: no connection within {limit_s:g} s.") from None
        except OSError as error:
            raise UpstreamUnreachable(f"{UNREACHABLE}: {_reason(error)}.") from error
        except BaseException:
            connection.abort()
            raise
        if not connection.is_open:
            raise UpstreamUnreachable(LOST_AT_ONCE)
        return connection

    def _take(self, key: tuple[str, int]) -> Connection | None:
        """Return the kept connection that was used last."""
        idle, now = self._idle.get(key), self._loop.time()
        while idle:
            connection = idle.pop()
            rested_s = now - connection.idle_since
            if connection.is_open and (rested_s < _BRIEF_S or (rested_s < self._idle_s and connection.is_quiet())):
                return connection
            connection.abort()
        return None

    def give_back(self, key: tuple[str, int], connection: Connection) -> None:
        """Keep a connection whose answer is complete for another request, and close any other."""
        if not connection.finish():
            return
        idle = self._idle.setdefault(key, [])
        if self._is_closed or len(idle) >= self._most_idle:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._idle_s, self._sweep)

    def run_out(self, key: tuple[str, int], connection: Connection) -> None:
        """Give a connection back once the end of its answer has come, which is all that is missing."""
        if connection.is_done:
            self.give_back(key, connection)
            return
        task = self._loop.create_task(self._await_end(key, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await_end(self, key: tuple[str, int], connection: Connection) -> None:
        self._ending[connection] = key
        try:
            connection.limit(self._loop.time() + self._end_s, "The answer has no end.")
            await connection.pipe(lambda _rest: True, self._end_s)
        except UpstreamError:
            pass  # the answer was whole without it
        finally:
            del self._ending[connection]
            self.give_back(key, connection)

    def _forget(self, key: tuple[str, int], connection: Connection) -> None:
        """Drop a connection that was lost."""
        idle = self._idle.get(key, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(key, None)

    def _sweep(self) -> None:
        """Close what nobody used for long; one timer looks at all connections."""
        oldest = self._loop.time() - self._idle_s
        kept = [connection for idle in self._idle.values() for connection in idle]
        for connection in kept:
            if connection.idle_since <= oldest:
                connection.abort()
        self._sweeper = self._loop.call_later(self._idle_s / 2, self._sweep) if kept else None

    def disconnect(self, url: str) -> None:
        """Close the kept connections to an engine that is to be stopped: it ends fast only when nobody is connected."""
        if (address := loopback_address(url)) is not None:
            ending = [connection for connection, key in self._ending.items() if key == address.key]
            for connection in [*self._idle.pop(address.key, []), *ending]:
                connection.abort()

    async def aclose(self) -> None:
        """Close what is kept, and keep nothing any more."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*itertools.chain(*self._idle.values()), *self._ending]:
            connection.abort()
        await asyncio.sleep(0)


class LoopbackResponse(UpstreamResponse):
    """An answer, and the connection that its ``transport`` gets back."""

    def __init__(
        self,
        connection: Connection,
        answer: HttpAnswer,
        transport: LoopbackTransport,
        key: tuple[str, int],
        asked: Mapping[str, str],
    ) -> None:
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self._connection: Connection | None = connection
        self._answer = answer
        self._transport = transport
        self._key = key
        self._asked = asked

    def at_hand(self) -> bytes | None:
        """Return the body if all of it has come with the head, as that of a small answer mostly does."""
        answer = self._answer
        is_there = answer.is_complete and self._connection is not None and self.status < 400
        return answer.take() if is_there else None

    def chunks(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the body's bytes unchanged; those of an error as a whole, without the server's key if it quotes it."""
        raw = self._raw(idle_timeout_s)
        return raw if self.status < 400 else without_secret(raw, secret_of(self._asked))

    async def _raw(self, idle_timeout_s: float) -> AsyncIterator[bytes]:
        while self._connection is not None and (chunk := await self._connection.read(idle_timeout_s)):
            yield chunk

    async def pipe(self, take: Take, idle_timeout_s: float) -> bool:
        """Give the body to ``take`` without a turn of the loop."""
        return self._connection is None or await self._connection.pipe(take, idle_timeout_s)

    def leave(self) -> None:
        """Give the connection back as soon as the end of the answer has come."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._transport.run_out(self._key, connection)

    async def close(self) -> None:
        """Give the connection back if the answer is complete, else close it; never waits."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._transport.give_back(self._key, connection)


class ByAddress:
    """The own client for engines on this machine, httpx for TLS and other machines."""

    def __init__(self, loopback: LoopbackTransport, elsewhere: Transport) -> None:
        self._loopback = loopback
        self._elsewhere = elsewhere

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes | AsyncIterable[bytes], *, head_timeout_s: float
    ) -> Coroutine[Any, Any, UpstreamResponse]:
        """Send a request and wait for the head; raises as both do."""
        transport = self._elsewhere if loopback_address(url) is None else self._loopback
        return transport.post(url, headers, body, head_timeout_s=head_timeout_s)


def _reason(error: OSError) -> str:
    """Return why there is no connection, without the address that the loop's own words name."""
    if isinstance(error, socket.gaierror) or not error.errno:  # several addresses, each with an error of its own
        return error.strerror or "no address of it takes a connection"
    return os.strerror(error.errno)
