"""How long a load may go on: as long as it gets on, up to a limit."""

from __future__ import annotations

import asyncio
import time

from rolecall.runtime.launcher import Process
from rolecall.runtime.progress import Signs, efforts

_LOOK_EVERY_S = 1.0
_LOOKS_PER_TIMEOUT = 4
_TAIL_LINES = 200


class LoadWatch:
    """Counts ``load_timeout_s`` from the last sign of progress, and ``load_limit`` times as much from the start."""

    def __init__(self, process: Process, load_timeout_s: float, load_limit: float) -> None:
        now = time.monotonic()
        self._process = process
        self._load_timeout_s = load_timeout_s
        self._load_limit = load_limit
        self._began = self._last_look = now
        self._look_every_s = min(_LOOK_EVERY_S, load_timeout_s / _LOOKS_PER_TIMEOUT)
        self._signs = Signs(now)

    @property
    def read_mb(self) -> float:
        """How much the engine and its children have read since their start."""
        return self._signs.read_mb

    async def verdict(self) -> str | None:
        """Return why the load is to be given up, in words; None while it may go on."""
        now = time.monotonic()
        if now - self._last_look >= self._look_every_s:
            self._last_look = now
            await asyncio.to_thread(self._look, now)  # a look at all of /proc
        if now - self._signs.last >= self._load_timeout_s:
            return f"not ready after {self._load_timeout_s:g} s (load_timeout_s) without a sign of progress"
        limit_s = self._load_limit * self._load_timeout_s
        if now - self._began >= limit_s:
            times = f"{self._load_limit:g} times load_timeout_s"
            return f"not ready after {limit_s:g} s, which is {times}, though it still seemed to be at work"
        return None

    def _look(self, now: float) -> None:
        self._signs.look(now, self._process.tail(_TAIL_LINES), efforts(self._process.members()))
