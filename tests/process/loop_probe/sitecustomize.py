"""Measures in a rolecall how long its event loop is held up; on PYTHONPATH Python runs this at its start.

Every 5 ms a timer looks at how late it is, and at how much CPU time the process has used since the last look. The
smaller of the two counts: what is late without work of our own waits for the machine. A new maximum, in ms, is written
to the file that ``ROLECALL_LOOP_PROBE`` names; without it the maximum begins anew. Twice a second the number of tasks
is written to the file beside it, with ``.tasks`` at its end.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

INTERVAL_S = 0.005
TASKS_EVERY = 100
TARGET = os.environ.get("ROLECALL_LOOP_PROBE")


class Probe:
    """The timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Path) -> None:
        self._loop, self._target = loop, target
        self._tasks = target.with_name(target.name + ".tasks")
        self._worst_s = 0.0
        self._looks = 0
        self.wind()

    def wind(self) -> None:
        """Look again in a while."""
        self._due, self._cpu = self._loop.time() + INTERVAL_S, time.process_time()
        self._loop.call_at(self._due, self.look)

    def look(self) -> None:
        """Compare."""
        held_s = min(self._loop.time() - self._due, time.process_time() - self._cpu)
        if not self._target.exists():  # whoever measures begins anew
            self._worst_s = 0.0
        if held_s > self._worst_s:
            self._worst_s = held_s
            self._target.write_text(f"{held_s * 1000:.1f}")
        self._looks += 1
        if self._looks % TASKS_EVERY == 0:
            self._tasks.write_text(str(len(asyncio.all_tasks(self._loop))))
        self.wind()


if TARGET and "serve" in sys.orig_argv:
    import uvloop

    class WatchedLoop(uvloop.Loop):
        """A loop that is watched from its first turn on."""

        def __init__(self) -> None:
            super().__init__()
            self.call_soon(Probe, self, Path(str(TARGET)))

    uvloop.Loop = WatchedLoop  # type: ignore[misc]
