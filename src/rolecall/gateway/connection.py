"""A connection to an engine, over which requests go one after the other."""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import AsyncIterable, Callable

from rolecall.errors import UpstreamError, UpstreamTimeout
from rolecall.gateway.http_answer import HttpAnswer, Malformed
from rolecall.gateway.upstream import Take

_HIGH_BYTES = 2**18
"""What waits of an answer until the engine is read no further."""


class Connection(asyncio.Protocol):
    """One exchange at a time: ``begin``, ``send``, ``head``, ``read`` or ``pipe`` to the end, ``finish``.

    A single task does all that. What takes too long makes the exchange ``fail``, and whatever its task waits for then
    raises. One timer looks after all limits of all exchanges: it is set anew only where it would come too late.
    ``on_lost`` is called once, at the end.
    """

    def __init__(self, on_lost: Callable[[Connection], None]) -> None:
        self.idle_since = 0.0
        self.has_heard = False
        """Whether anything of the answer came."""
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._answer: HttpAnswer | None = None
        self._error: Exception | None = None
        self._take: Take | None = None
        self._failed: Exception | None = None
        self._changed: asyncio.Future[None] | None = None
        self._limits: dict[str, float] = {}
        self._idle_s = math.inf
        self._waits_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf
        self._is_full = self._is_paused = self._is_sent = False

    # -- what the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Take in some bytes of an answer; none belong to a connection of which nobody wants any."""
        answer = self._answer
        if answer is None or self._error is not None:
            self.abort()
            return
        self.has_heard = True
        try:
            answer.feed(data)
        except Malformed as reason:
            self._pass_on(answer)
            self._break(str(reason))
            self.abort()
            return
        if self._take is not None:
            self._pass_on(answer)
            return
        if answer.waiting > _HIGH_BYTES and not (self._is_paused or answer.is_complete) and self._transport:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; an answer that goes on until then is complete, if it was closed and not reset."""
        self._on_lost(self)
        if self._answer is not None:
            try:
                self._answer.end(is_reset=exc is not None)
            except Malformed as reason:
                self._break(str(reason))
        self._is_full = False
        self._wake()
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """Let the sender wait: the engine takes no more."""
        self._is_full = True

    def resume_writing(self) -> None:
        """Let the sender go on."""
        self._is_full = False
        self._wake()

    # -- an exchange

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_done(self) -> bool:
        """Whether the answer is there to its end."""
        return self._answer is None or self._answer.is_complete

    def is_quiet(self) -> bool:
        """Whether nothing has come that the loop has not told yet: the end of a kept connection, in most cases."""
        return not self._poll.poll(0)

    def begin(self, answer: HttpAnswer) -> None:
        """Expect an answer."""
        self._answer, self._error = answer, None
        self.has_heard = self._is_sent = False

    def limit(self, at: float, late: str) -> None:
        """Have the exchange fail at a moment of the loop's clock, unless that is lifted or it is finished."""
        self._limits[late] = at
        self._look_at(at)

    def lift(self, late: str) -> None:
        """Let go of a limit."""
        self._limits.pop(late, None)

    def fail(self, error: Exception) -> None:
        """Have whatever waits for the answer raise an error; the first one counts."""
        if self._error is None:
            self._error = error
        self._wake()

    def write(self, data: bytes) -> None:
        """Send a whole request that is small; what does not fit is kept by the transport."""
        if self._transport is not None:
            self._transport.write(data)
        self._is_sent = True

    async def send(self, parts: AsyncIterable[bytes | memoryview]) -> None:
        """Send a request as fast as the engine takes it, and no further once it was refused."""
        async for part in parts:
            if self._is_refused() or self._transport is None:
                return
            self._transport.write(part)
            while self._is_full and not self._is_refused():
                await self._change()
        self._is_sent = not self._is_refused()

    def _is_refused(self) -> bool:
        """Whether nobody will read the rest of the request: a refusal may come before its end."""
        answer = self._answer
        return self._error is not None or answer is None or answer.is_complete or answer.status >= 400

    async def head(self) -> HttpAnswer:
        """Wait for the head of the answer; raises ``UpstreamError``."""
        while True:
            if self._answer is not None and self._answer.has_head:
                return self._answer
            if self._error is not None:
                raise self._error
            await self._change()

    async def read(self, idle_s: float) -> bytes:
        """Return what has come of the body, nothing at its end; raises ``UpstreamError``.

        Raises ``UpstreamTimeout`` if nothing came for ``idle_s``, counted from this call.
        """
        answer = self._answer
        if answer is None:
            return b""
        if not answer.waiting and not answer.is_complete and self._error is None:
            self._watch_idle(idle_s)
        while not answer.waiting:
            if answer.is_complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._change()
        data = answer.take()
        self._resume()
        return data

    async def pipe(self, take: Take, idle_s: float) -> bool:
        """Give the body to ``take``, as it comes, until that wants no more; return whether the end has come.

        A part costs no turn of the loop and wakes nobody. Raises as ``read`` does, and what ``take`` raises.
        """
        answer = self._answer
        if answer is None:
            return True
        self._take = take
        self._watch_idle(idle_s)
        self._pass_on(answer)
        self._resume()
        try:
            while self._is_piping and not answer.is_complete:
                if self._error is not None:
                    raise self._error
                await self._change()
        finally:
            self._take = None
            failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        return answer.is_complete and not answer.waiting

    @property
    def _is_piping(self) -> bool:
        return self._take is not None

    def _pass_on(self, answer: HttpAnswer) -> None:
        """Give what has come to whom it is piped; wake the task that pipes if that is all or too much."""
        if self._take is not None and answer.waiting:
            self._waits_since = self._loop.time()
            try:
                if not self._take(answer.take()):
                    self._take = None
            except Exception as error:  # noqa: BLE001 - raised where it is piped
                self._failed, self._take = error, None
        if self._take is None or answer.is_complete:
            self._wake()

    def finish(self) -> bool:
        """End the exchange at whatever point it is; returns whether another request may follow it."""
        answer, self._answer = self._answer, None
        if self._changed is None:
            self._error = None  # its traceback leads back here, and to the request
        else:
            self.fail(UpstreamError("The answer was closed while it was read."))
        self._limits.clear()
        self._idle_s = math.inf
        if answer is None:
            return False
        answer.let_go()
        if self._may_go_on(answer) and self.is_open:
            self._resume()
            return True
        self.abort()
        return False

    def _may_go_on(self, answer: HttpAnswer) -> bool:
        is_whole = answer.is_complete and answer.is_clean and self._is_sent and not self._is_full
        return is_whole and answer.keeps_alive and answer.status < 400  # llama-server closes it after an error

    def abort(self) -> None:
        """Close the connection now: the engine stops to answer."""
        if self._transport is not None:
            self._transport.abort()

    # -- waiting and failing

    async def _change(self) -> None:
        """Wait until anything has changed."""
        self._changed = self._loop.create_future()
        try:
            await self._changed
        finally:
            self._changed = None

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _resume(self) -> None:
        if self._is_paused and self.is_open and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    # -- time

    def _watch_idle(self, idle_s: float) -> None:
        """Begin to count how long nothing comes."""
        self._idle_s, self._waits_since = idle_s, self._loop.time()
        self._look_at(self._waits_since + idle_s)

    def _look_at(self, at: float) -> None:
        """See to it that somebody looks at the limits then, or before."""
        if self._timer is None or at < self._looks_at:
            if self._timer is not None:
                self._timer.cancel()
            self._looks_at = at
            self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """Fail if a limit has passed; else look again at the next one, if there is any."""
        self._timer, now = None, self._loop.time()
        waits_since = now if self._changed is None else self._waits_since
        due, late = min(
            ((at, late) for late, at in self._limits.items()),
            default=(math.inf, ""),
        )
        if waits_since + self._idle_s < due:
            due, late = waits_since + self._idle_s, f"The engine sent nothing for {self._idle_s:g} s."
        if due <= now:
            self.fail(UpstreamTimeout(late))
        elif due < math.inf:
            self._look_at(due)

    def _break(self, reason: str) -> None:
        has_head = self._answer is not None and self._answer.has_head
        when = "in the middle of its answer" if has_head else "before it answered"
        self.fail(UpstreamError(f"The engine broke off {when}: {reason}."))
