"""Watches a gateway for those who watch the dashboard: what happens, gathered into rounds, told to all at once.

Nothing is looked at while nobody watches: then lines and the scheduler's events are but put on bounded lists. While
somebody does, an event has the next round made, at most four a second; a round looks at how everything stands, and
tells what differs. No event, no round: but figures that move by themselves (answers, loads) are looked at once a
second, and the memory of processes every five.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from rolecall.core.events import Effect, Event, Tick
from rolecall.gateway.recorder import timestamp
from rolecall.gateway.server import Gateway
from rolecall.insight.board import Board, Tail
from rolecall.insight.event_stream import HEARTBEAT_S, STILL_THERE, too_many
from rolecall.insight.timeline import MOST_ENTRIES, TELLING, Timeline

if TYPE_CHECKING:
    from rolecall.insight.sections import Sections, Weights

log = logging.getLogger(__name__)

MOST_WATCHERS = 32
ROUND_S = 0.25
MOST_AT_ONCE = 50
"""Lines, and entries of the timeline, of one round; so many lines are kept, too."""

_GATHER_S = 0.02
_MOVE_S = 1.0
_WEIGH_S = 5.0
_KEYS_S = 0.5
_BATCH = 128
"""Lines that are counted in one go."""
_PRIVATE = frozenset({"prompt", "response"})


@dataclass(slots=True, eq=False)
class Watcher:
    """One who watches; ``may_stay`` says whether it still may, ``number`` is the last round that it was given."""

    may_stay: Callable[[], bool]
    number: int | None = None
    is_over: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> None:
        """Let it go."""
        self.is_over = True
        self.wake.set()


class Feed:
    """Listens to a gateway from the start; ``watch`` it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._board = Board()
        self._timeline = Timeline()
        self._started_at = time.time()
        self._sections: Sections | None = None  # made for the first who watches
        self._weights: Weights | None = None
        self._watchers: set[Watcher] = set()
        self._pending: list[Mapping[str, Any]] = []
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=MOST_AT_ONCE)
        self._lines = self._lines_told = self._entries_told = 0
        self._totals = dict.fromkeys(("requests", "errors", "prompt_tokens", "completion_tokens"), 0)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._made_at = 0.0
        self._weighing: asyncio.Task[None] | None = None
        self._is_over = False
        services = gateway.services
        self._batch = 1 if services.settings.log_prompts else _BATCH  # lines with prompts can be megabytes
        services.recorder.listeners.append(self._hear_line)
        services.supervisor.listen(self._hear_event)

    # -- what happens

    def _hear_line(self, line: Mapping[str, Any]) -> None:
        self._pending.append(line)
        if len(self._pending) >= self._batch:
            self._count()
        if self._watchers:
            self._soon()

    def _hear_event(self, event: Event, effects: list[Effect]) -> None:
        if effects or isinstance(event, TELLING):
            self._timeline.hear(event, effects, time.monotonic(), time.time())
        if self._watchers and (effects or not isinstance(event, Tick)):
            self._soon()

    def _count(self) -> None:
        """Count the lines that came, and keep the newest."""
        pending, self._pending = self._pending, []
        totals = self._totals
        for line in pending:
            totals["errors"] += bool(line["error"]) or (line["status"] or 0) >= 400
            totals["prompt_tokens"] += line["prompt_tokens"] or 0
            totals["completion_tokens"] += line["completion_tokens"] or 0
        totals["requests"] += len(pending)
        self._lines += len(pending)
        self._recent.extend(map(without_prompts, pending[-MOST_AT_ONCE:]))

    # -- rounds

    def _soon(self) -> None:
        """Have a round made; those that would come within a quarter of a second are one."""
        if "round" not in self._timers:
            self._later("round", max(_GATHER_S, self._made_at + ROUND_S - time.monotonic()), self._make)

    def _later(self, name: str, seconds: float, what: Callable[[], None]) -> None:
        """Do something once, later; what is under way already is not done twice."""
        if name not in self._timers and not self._is_over:

            def ring() -> None:
                del self._timers[name]
                what()

            self._timers[name] = asyncio.get_running_loop().call_later(seconds, ring)

    def _make(self) -> None:
        """Make a round."""
        try:
            self.look()
        except Exception:  # whoever watches must not end what is served
            log.exception("what the dashboard shows cannot be told")
        self._made_at = time.monotonic()
        if self._watchers and self._is_moving:
            self._later("moving", _MOVE_S, self._soon)

    @property
    def _is_moving(self) -> bool:
        return self._sections is not None and self._sections.is_moving

    def look(self) -> None:
        """Look at how all stands, and wake those who watch if anything differs."""
        if self._sections is None:
            return
        self._count()
        timeline = self._timeline
        lines, entries = self._lines - self._lines_told, timeline.count - self._entries_told
        recent = list(self._recent)
        tails = (
            Tail("finished", recent[-lines:] if lines else [], max(0, lines - len(recent))),
            Tail("timeline", timeline.newest(min(entries, MOST_AT_ONCE)), max(0, entries - MOST_AT_ONCE)),
        )
        self._lines_told, self._entries_told = self._lines, timeline.count
        lists: dict[str, list[Any]] = {"history": recent, "timeline": timeline.newest(MOST_ENTRIES)}
        sections = {**self._sections.all(self._weights), "totals": self._counted()}
        if self._board.update(timestamp(time.time()), sections, tails, lists):
            for watcher in self._watchers:
                watcher.wake.set()

    def _counted(self) -> dict[str, Any]:
        of_models = {"loads": self._timeline.loads, "evictions": self._timeline.evictions}
        return {"data": {**self._totals, **of_models, "log_lines_dropped": self._gateway.services.recorder.dropped}}

    def _weigh(self) -> None:
        if self._watchers and (self._weighing is None or self._weighing.done()):
            self._weighing = asyncio.create_task(self._measure())

    async def _measure(self) -> None:
        status = self._gateway.services.supervisor.status(weigh=False)
        pids = {row.model.name: row.pid for row in status if row.pid}
        from rolecall.insight.sections import weigh  # noqa: PLC0415 - with the first who watches

        self._weights = await asyncio.to_thread(weigh, self._gateway, pids)
        self._soon()
        self._later("weighing", _WEIGH_S, self._weigh)

    # -- those who watch

    def admit(self, may_stay: Callable[[], bool]) -> Watcher:
        """Return a new watcher, who is to be dismissed in the end; raises ``TooManyRequests``."""
        if len(self._watchers) >= MOST_WATCHERS:
            raise too_many(f"{MOST_WATCHERS} clients watch already; close a page of the dashboard.")
        watcher = Watcher(may_stay)
        if not self._watchers:
            self._begin()
        self._watchers.add(watcher)
        if self._is_moving:
            self._soon()
        return watcher

    def _begin(self) -> None:
        """Begin to look: all that was not looked at meanwhile is new."""
        from rolecall.insight.sections import Sections  # noqa: PLC0415 - which a server that nobody watches need not have

        self._sections = self._sections or Sections(self._gateway, self._started_at)
        self._gateway.inference.on_begin = self._soon
        self._board = Board(self._board.number)
        self._count()
        self._lines_told, self._entries_told = self._lines, self._timeline.count
        self.look()
        self._made_at = time.monotonic()
        self._later("weighing", 0, self._weigh)
        if self._gateway.keys is not None:
            self._later("keys", _KEYS_S, self._check_keys)

    def dismiss(self, watcher: Watcher) -> None:
        """Forget a watcher; with the last one the looking ends."""
        self._watchers.discard(watcher)
        if not self._watchers:
            self._gateway.inference.on_begin = None
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    def _check_keys(self) -> None:
        for watcher in self._watchers:
            if not watcher.may_stay():
                watcher.end()
        self._later("keys", _KEYS_S, self._check_keys)

    async def events(self, watcher: Watcher) -> AsyncIterator[bytes]:
        """Yield what a watcher is to be given, until it is over."""
        while not watcher.is_over:
            watcher.wake.clear()
            told, watcher.number = self._board.after(watcher.number), self._board.number
            if told:
                yield told
                continue
            with anyio.move_on_after(HEARTBEAT_S) as waiting:
                await watcher.wake.wait()
            if waiting.cancelled_caught:
                yield STILL_THERE

    def recent(self, request_id: str) -> Mapping[str, Any] | None:
        """Return the line of a request that has just ended, which may not be in the file yet."""
        self._count()
        return next((line for line in self._recent if line["request_id"] == request_id), None)

    def stop(self) -> None:
        """End all streams: the server ends."""
        self._is_over = True
        for watcher in self._watchers:
            watcher.end()

    async def aclose(self) -> None:
        """Wait for what runs in the background."""
        if self._weighing is not None:
            self._weighing.cancel()
            await asyncio.wait({self._weighing})


def without_prompts(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a line of the log without what was asked and answered."""
    return line if _PRIVATE.isdisjoint(line) else {name: line[name] for name in line if name not in _PRIVATE}
