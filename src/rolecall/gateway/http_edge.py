"""The connections: what uvicorn's HTTP/1.1 leaves open, limited; what is no request, answered in OpenAI's shape.

A connection is in one of four phases, each with its own limit of time:

    idle     nothing of a request yet     uvicorn's keep-alive; ``header_s`` on a fresh connection
    head     its first bytes are there    ``header_s`` to the last of its headers
    body     the head is complete         ``body_s`` between two parts, and a lowest rate on average
    answer   the request is complete      the application's own limits

Requests that are sent before the last one was answered (pipelining) wait, up to ``_PIPELINED`` of them. Who sends more
has their answers, and then the end of the connection, as RFC 9112 allows (9.3.2): thousands of small requests in one
packet would otherwise all be held.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
import orjson
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from rolecall.errors import BadRequest, HeadersTooLarge, RequestTimeout, RolecallError, TooManyConnections
from rolecall.gateway.edge_wire import EdgeWire
from rolecall.gateway.request_id import new_request_id
from rolecall.settings import Settings

log = logging.getLogger(__name__)

_LINGER_S = 2.0
"""How long a refused client may go on sending: bytes that nobody reads reset the connection, and the error is lost."""
_REST_S = 60.0
"""How long the rest of a body may come whose answer was given without it: most clients look for one only after they
have sent everything. A client that pauses or is slow has no more time than with any other body."""
_FLUSH_S = 30.0
"""How long a client may take nothing of an answer whose connection is to be closed."""
_LINGERING = 100
"""Connections above the limit that are told so; more are dropped without a word."""
_OTHER_FILES = 100
"""Of engines, logs and the libraries."""
_PIPELINED = 8
_UNREAD_BYTES = 2**30
"""What a client may send of a body that nobody reads, once it has its answer."""
_RETRY_S = 2
_NOT_FORWARDED = frozenset({b"connection", b"upgrade", b"http2-settings"})
_FRAMING = frozenset({b"host", b"transfer-encoding", b"expect"})
_TLS_HANDSHAKE = 0x16


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What a connection may do. ``header_s`` and ``body_s`` are seconds, ``body_rate`` bytes per second (0: any)."""

    connections: int
    header_bytes: int
    headers: int
    header_s: float
    body_s: float
    body_rate: int

    @classmethod
    def of(cls, settings: Settings) -> EdgeLimits:
        """Return the limits that the settings name."""
        return cls(
            connections=min(settings.max_connections, _connections_by_files()),
            header_bytes=settings.max_header_bytes,
            headers=settings.max_headers,
            header_s=settings.header_timeout_ms / 1000,
            body_s=settings.body_timeout_ms / 1000,
            body_rate=settings.min_body_bytes_per_s,
        )


def _connections_by_files() -> int:
    """Return for how many connections there are files: a request needs two, of its client and to its engine."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource  # noqa: PLC0415 - not on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(10, (soft - _OTHER_FILES) // 2)


@dataclass(slots=True)
class _BodyClock:
    """When parts of a body came, on the loop's clock."""

    since: float
    at: float
    received: int = 0

    def due(self, limits: EdgeLimits) -> float:
        """Return when the body will have been too slow, unless more of it comes.

        The average is that of Apache's mod_reqtimeout: ``body_s``, and a second more for every ``body_rate`` bytes.
        """
        pause = self.at + limits.body_s
        if not limits.body_rate:
            return pause
        return min(pause, self.since + limits.body_s + self.received / limits.body_rate)

    def restart(self, now: float) -> None:
        """Forget what was: the waiting was ours."""
        self.since = self.at = now
        self.received = 0


def edge_protocol(limits: EdgeLimits) -> type[HttpToolsProtocol]:
    """Return the class that uvicorn makes one object of for each connection (``uvicorn.Config(http=...)``)."""
    return type("EdgeProtocol", (_EdgeProtocol,), {"limits": limits})


def retire(connections: Iterable[object]) -> None:
    """Let each of a server's connections serve its last request."""
    for connection in list(connections):
        if isinstance(connection, _EdgeProtocol):
            connection.retire()


class _Polite:
    """A connection's transport as uvicorn's answers use it, but for its end."""

    def __init__(self, protocol: _EdgeProtocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.leave


class _EdgeProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits. A refused connection is deaf: what still comes is thrown away."""

    limits: ClassVar[EdgeLimits]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_deaf = False
        self._head_since: float | None = None
        self._head_bytes = 0  # of what is complete
        self._head_fed = 0  # of all but the last part, as it came
        self._may_be_long = False  # whether more has come than a head may have: else nobody needs to count
        self._body: _BodyClock | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._rests_since: float | None = None  # when the last answer was complete
        self._has_spoken = False
        self._is_left = False
        self._is_retired = False
        self._sheds_upgrade = False
        self._answering: EdgeWire | None = None  # ``cycle`` is the last request that came
        self._broken: tuple[RequestResponseCycle, RolecallError] | None = None

    # -- a connection comes and goes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)
        self._polite = _Polite(self)
        excess = len(self.connections) - self.limits.connections
        if excess > _LINGERING:
            transport.abort()
        elif excess > 0:
            self._refuse(_too_many(self.limits.connections))
        else:
            self._head_since = self.loop.time()
            self._wind_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._is_deaf = True
        for timer in (self._clock, self._farewell, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if self._answering is not None:  # uvicorn tells the last one alone
            self._answering.lost()
        for cycle, _ in self.pipeline:
            cycle.disconnected = True

    def data_received(self, data: bytes) -> None:
        """Take in some bytes of any number of phases."""
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        self._has_spoken = True
        if self._is_idle:
            self._head_since = self.loop.time()
        if self._body is not None or self._head_fed + len(data) > self.limits.header_bytes:
            if not self._may_be_long:
                self._may_be_long, self._head_bytes = True, self._head_fed
        else:
            self._may_be_long = False
        try:
            self._feed(data)
            if self._head_since is not None:
                self._head_fed += len(data)
                self._check_head()
        except httptools.HttpParserError as error:
            self._refuse(_reason(error, data))
        except RolecallError as error:
            self._refuse(error)
        if not self._is_deaf:
            self._wind_clock()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._sheds_upgrade:
                self._start_over(data[upgrade.args[0] :])

    def _start_over(self, rest: bytes) -> None:
        """Read the head again without its wish for another protocol; the parser would take the body for that one.

        Java's HTTP client asks for HTTP/2 (h2c) with each first request, those with a body included.
        """
        self._sheds_upgrade = False
        kept = [pair for pair in self.headers if pair[0] not in _NOT_FORWARDED]
        start = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [start, *(b"%s: %s" % pair for pair in kept)]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"\r\n".join(lines) + b"\r\n\r\n")
        self._feed(rest)

    # -- what the parser finds; an error raised here comes out of ``feed_data`` as the context of the parser's own

    def on_message_begin(self) -> None:
        """Begin a request."""
        if len(self.pipeline) == _PIPELINED:
            raise BadRequest(f"Only {_PIPELINED} requests may wait on a connection.")
        if self._head_since is None:
            self._head_since = self.loop.time()
        self._head_bytes = self._head_fed = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take in a part of the target."""
        if self._may_be_long:
            self._head_bytes += len(url)
            self._check_head()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; those that follow a chunked body are counted and dropped."""
        if self._may_be_long:
            self._head_bytes += len(name) + len(value) + 4
            self._check_head()
        if self._body is None:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Begin to serve the request."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise BadRequest("rolecall is no proxy for other servers: CONNECT is not served.")
            self._sheds_upgrade = True
            return
        self._check_head()
        self.expect_100_continue = _check_framing(self.parser.get_http_version(), self.headers)
        super().on_headers_complete()
        if self.pipeline:  # uvicorn reads no more then, and nobody would notice that the client leaves
            self.flow.resume_reading()
        now = self.loop.time()
        self._head_since = None
        self._body = _BodyClock(now, now)

    def on_body(self, body: bytes) -> None:
        """Take in a part of the body."""
        if self._body is not None:
            self._body.received += len(body)
            self._body.at = self.loop.time()
            if self._body.received > _UNREAD_BYTES and self.cycle.response_complete:
                raise BadRequest("The body goes on though its answer was given.")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole."""
        if not self._sheds_upgrade:
            self._body = None
            super().on_message_complete()
            if self._is_left:
                self.transport.close()

    def _check_head(self) -> None:
        limit = self.limits.header_bytes
        if self._head_bytes > limit or self._head_fed > limit:
            raise HeadersTooLarge(f"The request's head has more than {limit} bytes (setting max_header_bytes).")
        if len(self.headers or ()) > self.limits.headers:
            raise HeadersTooLarge(f"The request has more than {self.limits.headers} headers (setting max_headers).")

    # -- time

    @property
    def _is_answering(self) -> bool:
        return self._answering is not None and not self._answering.cycle.response_complete

    @property
    def _is_idle(self) -> bool:
        return self._head_since is None and self._body is None and not self._is_answering

    def _wind_clock(self) -> None:
        """See to it that somebody looks when the present phase has lasted too long."""
        due = self._due()
        if due is None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
        elif self._clock is None:  # a phase that goes on later is looked at again
            self._clock = self.loop.call_at(due, self._look)

    def _due(self) -> float | None:
        if self._head_since is not None:
            return self._head_since + self.limits.header_s
        return None if self._body is None else self._body.due(self.limits)

    def _look(self) -> None:
        self._clock = None
        now = self.loop.time()
        if self._body is not None and (self.flow.read_paused or self.cycle.waiting_for_100_continue):
            self._body.restart(now)  # it is for the application to go on
        due = self._due()
        if due is None or self._is_deaf:
            return
        if due > now:
            self._wind_clock()
        elif self._body is not None:
            self._refuse(_slow_body(self._body, self.limits))
        elif self._has_spoken:
            limit = f"{self.limits.header_s:g} s (setting header_timeout_ms)"
            self._refuse(RequestTimeout(f"The request's head did not come within {limit}."))
        else:  # a connection in stock; nobody waits for an answer
            self.transport.close()

    # -- refusing

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; uvicorn's own answer is plain text."""
        self._refuse(BadRequest(msg))

    def _refuse(self, error: RolecallError) -> None:
        """End the connection with an error, or after the answers that are on their way."""
        log.debug("refused a request from %s: %s", self.client, error.message)
        self._is_deaf = True
        self._head_since = None
        if not self._is_answering:
            if self._body is None:
                self._say(error)
            else:  # it has its answer
                self.transport.close()
            return
        self.cycle.keep_alive = False
        self.flow.resume_reading()  # what comes is thrown away, but the end is to be noticed
        if self._body is not None:
            self._body = None
            self._broken = self.cycle, error
            self.cycle.message_event.set()

    def _say(self, error: RolecallError) -> None:
        if self.transport.is_closing():
            return
        content = orjson.dumps(error.body())
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "x-request-id": new_request_id(),
            "connection": "close",
            **error.headers(),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + content)
        self.leave()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        """Serve; an application that waits for a body that was refused gets the reason as an exception."""
        if self._is_retired:
            cycle.keep_alive = False
        wire = self._answering = EdgeWire(cycle, app, self._problem)
        cycle.transport = self._polite  # type: ignore[assignment]
        wire.task = self.loop.create_task(cycle.run_asgi(wire.serve))  # type: ignore[arg-type]
        wire.task.add_done_callback(self.tasks.discard)
        self.tasks.add(wire.task)

    def _problem(self, cycle: RequestResponseCycle) -> RolecallError | None:
        """Return why the body of a request was refused."""
        return self._broken[1] if self._broken is not None and self._broken[0] is cycle else None

    # -- the end of an answer

    def retire(self) -> None:
        """Serve one more request at the most, or what is on its way, and say with its answer that it was the last.

        A connection whose answer has begun stays open behind it: its client does not know, and may be sending already.
        """
        self._is_retired = True
        if self._is_answering and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def leave(self) -> None:
        """Close the connection, once the client has sent what it is about to send."""
        if self.transport.is_closing():
            return
        if self._body is None and not self._is_deaf:
            self.transport.close()
            return
        self._is_left = True
        self.transport.write_eof()
        self._farewell = self.loop.call_later(_LINGER_S if self._is_deaf else _REST_S, self.transport.abort)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to take the rest of the answer.

        As in uvicorn, but without a timer for each request: one looks now and then since when nothing came.
        """
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                cycle, app = self.pipeline.pop()
                self._start_asgi_task(cycle, app)  # type: ignore[arg-type]
            else:
                self._rests_since = self.loop.time()
                if self.timeout_keep_alive_task is None:
                    self._rest_until(self._rests_since + self.timeout_keep_alive)
        self._await_flush()

    def _unset_keepalive_if_required(self) -> None:
        self._rests_since = None

    def _rest_until(self, moment: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(moment, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing came for long."""
        self.timeout_keep_alive_task = None
        if self._rests_since is None:
            return
        if (moment := self._rests_since + self.timeout_keep_alive) > self.loop.time():
            self._rest_until(moment)
            return
        super().timeout_keep_alive_handler()
        self._await_flush()

    def _await_flush(self, before: int | None = None) -> None:
        """Drop a closing connection whose client takes nothing; it would stay for as long as the client likes."""
        left = self.transport.get_write_buffer_size() if self.transport.is_closing() else 0
        if left and left == before:
            self.transport.abort()
        elif left:
            self._farewell = self.loop.call_later(_FLUSH_S, self._await_flush, left)


def _check_framing(version: str, headers: list[tuple[bytes, bytes]]) -> bool:
    """Raise ``BadRequest`` for a head of which two servers could think differently; return whether it asks for 100."""
    hosts, codings, expects = 0, [], False
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
        else:
            expects |= value.lower() == b"100-continue"
    if version not in {"1.0", "1.1"}:
        raise BadRequest(f"rolecall speaks HTTP/1.1, not HTTP/{version}.")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise BadRequest(f"The request has {hosts} Host headers; HTTP/1.1 wants one.")
    if codings and (codings != [b"chunked"] or version == "1.0"):
        raise BadRequest("The only Transfer-Encoding that rolecall reads is chunked, in HTTP/1.1.")
    return expects


def _reason(error: httptools.HttpParserError, data: bytes) -> RolecallError:
    """Return what was wrong in words: our own, or the parser's."""
    ours = error.__context__
    if isinstance(ours, RolecallError):
        return ours
    if isinstance(error, httptools.HttpParserInvalidMethodError) and data[0] == _TLS_HANDSHAKE:
        return BadRequest("This port speaks plain HTTP: use http://, not https://.")
    if "PRI/Upgrade" in str(error):
        return BadRequest("rolecall speaks HTTP/1.1, not HTTP/2.")
    if isinstance(error, httptools.HttpParserCallbackError):
        return BadRequest("The request's target is not a path.")
    return BadRequest(f"This is not an HTTP request that rolecall can read: {str(error).rstrip('.')}.")


def _slow_body(clock: _BodyClock, limits: EdgeLimits) -> RequestTimeout:
    came = f"after {clock.received} bytes"
    if clock.at + limits.body_s <= clock.due(limits):
        return RequestTimeout(f"The body stopped for {limits.body_s:g} s {came} (setting body_timeout_ms).")
    least = f"{limits.body_rate} bytes a second (setting min_body_bytes_per_s)"
    return RequestTimeout(f"The body is slower than {least} on average, {came}.")


def _too_many(limit: int) -> TooManyConnections:
    return TooManyConnections(
        f"{limit} connections are open already (setting max_connections, and the limit of open files).",
        retry_after_s=_RETRY_S,
    )
