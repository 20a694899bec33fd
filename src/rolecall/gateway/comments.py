"""What the client of a stream hears while it waits: the head of its answer, and comments."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rolecall.core.lifecycle import State
from rolecall.gateway.reply import Reply
from rolecall.runtime.lease import Outlook

T = TypeVar("T")

_HEAD: Mapping[str, str] = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect comments until they fill a buffer
}


@dataclass(frozen=True, slots=True)
class Pace:
    """When something is said, in s.

    A request that waits for a model has its head after ``head_after_s``: a quick answer keeps its own status and
    headers. One whose engine was there at once, and only takes its time, has it after ``processing_every_s`` more.
    """

    head_after_s: float = 0.75
    waiting_every_s: float = 2.0
    processing_every_s: float = 10.0


class Commentary:
    """Comments on the work that a stream's client waits for.

    ``outlook`` tells what is waited for, None while the engine has the request. ``headers`` are asked
    for what goes along with a head that is sent early.
    """

    def __init__(
        self,
        reply: Reply,
        outlook: Callable[[], Outlook | None],
        headers: Callable[[], Mapping[str, str]],
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self._reply = reply
        self._outlook = outlook
        self._headers = headers
        self._has_looked = self._is_working = False
        self._commenting: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._due_at = time.monotonic() + self._pace.head_after_s

    async def over(self, work: Awaitable[T]) -> T:
        """Return what ``work`` does, and comment until it is done; raises ``ClientGone`` as ``Reply`` does.

        The task that comments is made when the first comment is due: most answers come before.
        """
        loop, worker = asyncio.get_running_loop(), asyncio.current_task()
        timer = loop.call_later(max(0.0, self._due_at - time.monotonic()), self._begin, worker)
        self._is_working = True
        try:
            return await work
        except asyncio.CancelledError:
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            self._is_working = False
            timer.cancel()
            if self._commenting is not None:
                self._commenting.cancel()
                await asyncio.wait({self._commenting})
                self._commenting = None

    def _begin(self, worker: asyncio.Task[Any] | None) -> None:
        self._commenting = asyncio.create_task(self._go_on(worker))

    async def _go_on(self, worker: asyncio.Task[Any] | None) -> None:
        """Comment for as long as the work takes, and end it with whatever ends the comments."""
        try:
            while True:
                pause_s = await self._comment()
                self._due_at = time.monotonic() + pause_s
                await asyncio.sleep(pause_s)
        except Exception as error:  # noqa: BLE001 - the worker raises it
            if self._is_working and worker is not None:
                self._failure = error
                worker.cancel()

    async def _comment(self) -> float:
        """Say what is going on, and return after how many seconds to say the next."""
        outlook = self._outlook()
        was_quick, self._has_looked = outlook is None and not self._has_looked, True
        if not was_quick:
            if not self._reply.has_head:
                await self._reply.promise({**_HEAD, **self._headers()})
            await self._reply.body(comment_on(outlook))
        return self._pace.processing_every_s if outlook is None else self._pace.waiting_every_s


def comment_on(outlook: Outlook | None) -> bytes:
    """Return the comment: ``: loading NAME 40% eta 12s``, ``: waiting for NAME, 3 ahead`` or ``: processing``."""
    if outlook is None:
        return b": processing\n\n"
    name = "".join(letter if letter.isprintable() else "?" for letter in outlook.model)
    if outlook.state is State.STARTING:
        done = "" if outlook.fraction is None else f" {outlook.fraction:.0%}"
        eta = "" if outlook.eta_s is None else f" eta {math.ceil(outlook.eta_s)}s"
        return f": loading {name}{done}{eta}\n\n".encode()
    ahead = f", {outlook.ahead} ahead" if outlook.ahead else ""
    return f": waiting for {name}{ahead}\n\n".encode()
