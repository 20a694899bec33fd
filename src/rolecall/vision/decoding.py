"""How many pictures the server decodes at the same time, whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

AT_A_TIME = 2
"""Pictures: each takes a processor, and up to 400 MB meanwhile."""


class Decoding:
    """Does what decodes a picture in a thread, once one of the two turns is free. All parts of a server share one."""

    def __init__(self) -> None:
        self._turns: anyio.CapacityLimiter | None = None  # belongs to a running loop

    async def run(self, work: Callable[[], T]) -> T:
        """Return what the work comes to; raises what it raises."""
        self._turns = self._turns or anyio.CapacityLimiter(AT_A_TIME)
        return await anyio.to_thread.run_sync(work, limiter=self._turns)

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return self._turns.statistics().tasks_waiting if self._turns else 0
