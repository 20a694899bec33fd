"""Requests as spans: each gets its place in a trace when it begins, and is told of once it is over.

A request pays for three random numbers and the sampler's word. Its spans are made from its line in the request log and
sent by a thread of their own. Lines wait for it in one queue, which drops the oldest and counts what it drops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rolecall.core.trace_context import TraceContext, context_of
from rolecall.insight.tracing_content import Content, content_of
from rolecall.insight.tracing_environ import MOST_WAITING

if TYPE_CHECKING:
    from rolecall.insight.tracing_spans import Spans

log = logging.getLogger(__name__)

_GATHER_S = 0.2
_LAST_S = 1.5
"""How long the end of the server waits for the last spans to be sent."""

_GIVE_UP_S = 0.4
"""How long it waits after that, for what is being sent to be given up."""

_TOO_MANY = "traces: the collector does not take them as fast as requests come; some are left out"


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that will be told of: the trace that it came with, and the ids of its two spans."""

    came: TraceContext | None
    trace_id: int
    server_id: int
    client_id: int


class Losses:
    """Counts requests that are not told of; that it begins is said once, and with their number that it is over."""

    def __init__(self) -> None:
        self.total = 0
        self._told = 0
        self._is_told = False

    def add(self, count: int, why: str) -> None:
        """Count requests that are lost."""
        self.total += count
        if count and not self._is_told:
            self._is_told = True
            log.warning("%s", why)

    def over(self, words: str = "traces are sent again") -> None:
        """Say how many were lost, if any were since this was said last."""
        if self._is_told:
            log.warning("%s; requests that are left out: %d", words, self.total - self._told)
            self._told, self._is_told = self.total, False


class Traces:
    """Gives requests their places in traces, and has a thread tell of those that are to be kept."""

    def __init__(self, spans: Spans, *, most_waiting: int = MOST_WAITING) -> None:
        self._spans = spans
        self._begun: dict[str, Begun] = {}
        self._waiting: deque[tuple[Mapping[str, Any], Begun, Content | None]] = deque(maxlen=most_waiting)
        self._dropped = self._counted = 0
        self._gives_up = False
        self._has_more = threading.Event()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rolecall-traces", daemon=True)
        self._thread.start()

    def begin(self, request_id: str, endpoint: str, came: TraceContext | None) -> TraceContext:
        """Return what engines are told: the same trace, with the span of our question to them as their parent."""
        trace_id = int(came.trace_id, 16) if came else random.getrandbits(128) or 1
        begun = Begun(came, trace_id, random.getrandbits(64) or 1, random.getrandbits(64) or 1)
        is_sampled = self._spans.is_sampled(begun, endpoint)
        if is_sampled:
            self._begun[request_id] = begun
        state = came.state if came else ""
        return context_of(f"{trace_id:032x}", f"{begun.client_id:016x}", is_sampled=is_sampled, state=state)

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take in the line of a request that is over."""
        begun = self._begun.pop(line["request_id"], None)
        if begun is None:
            return
        self._dropped += len(self._waiting) == self._waiting.maxlen
        content = None
        if "prompt" in line or "response" in line:  # they may be megabytes, and are not kept
            content = content_of(line)
            line = {name: value for name, value in line.items() if name not in {"prompt", "response"}}
        self._waiting.append((line, begun, content))
        if not self._has_more.is_set():
            self._has_more.set()

    def lost(self) -> int:
        """Return how many requests were to be told of and are not."""
        return self._spans.losses.total + self._dropped - self._counted

    def _run(self) -> None:
        while not self._ends.is_set():
            self._has_more.wait(self._spans.sender.due_in_s())
            self._has_more.clear()
            self._ends.wait(_GATHER_S)
            self._tell()
            self._spans.sender.send_if_due()
            self._count_dropped()
            if not self._waiting and self._spans.sender.works:
                self._spans.losses.over()
        self._tell()
        if not self._gives_up:
            self._spans.sender.send()

    def _tell(self) -> None:
        while not self._gives_up:
            try:
                line, begun, content = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._spans.tell(line, begun, content)
            except Exception:
                log.exception("request %s cannot be told of as spans", line.get("request_id"))
            self._count_dropped()
            time.sleep(0)  # the event loop gets the interpreter

    def _count_dropped(self) -> None:
        count = self._dropped - self._counted
        self._counted += count
        self._spans.losses.add(count, _TOO_MANY)

    async def aclose(self) -> None:
        """Send what waits, for as long as that may take; nobody answers for a collector that hangs."""
        self._ends.set()
        self._has_more.set()
        done, loop = asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            self._thread.join(_LAST_S if self._spans.sender.works else 0)
            self._gives_up = True
            self._spans.shutdown()
            self._thread.join(_GIVE_UP_S)
            self._tell_what_is_left()
            with contextlib.suppress(RuntimeError):  # the loop did not wait
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=end, name="rolecall-traces-end", daemon=True).start()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), _LAST_S + 2 * _GIVE_UP_S)

    def _tell_what_is_left(self) -> None:
        left = len(self._waiting) + self._spans.sender.kept()
        self._count_dropped()
        self._spans.losses.add(left, "traces: the collector did not take all of them before the end")
        self._spans.losses.over("traces end")
        self._spans.sender.close()
