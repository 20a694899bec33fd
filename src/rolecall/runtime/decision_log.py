"""Writes down what the scheduler was told and what it decided, for ``rolecall replay``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from rolecall.core.decisions import encode, header
from rolecall.core.events import Effect, Event
from rolecall.core.scheduler import Scheduler

log = logging.getLogger(__name__)


class DecisionLog:
    """Appends to a file; a disk that takes no more ends the recording, and nothing else.

    It is made readable for its owner alone: the registry, which is in it, may hold secrets in an ``env``.
    A line is written to its end before the next event is handled: it is small, and lands in the page cache.
    """

    def __init__(self, path: Path, scheduler: Scheduler) -> None:
        self._path = path
        self._file = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab", buffering=0, opener=_as_ours)  # noqa: SIM115 - closed by close()
        except OSError as error:
            log.warning("record_decisions: nothing is recorded, %s cannot be written: %s", path, error)
        self._write(header(scheduler))

    def record(self, event: Event, now: float, effects: Iterable[Effect]) -> None:
        """Write one decision."""
        if self._file is not None:
            self._write(encode(event, now, effects))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _write(self, line: bytes) -> None:
        try:
            if self._file is not None:
                self._file.write(line)
        except OSError as error:
            log.warning("record_decisions: the recording ends, %s cannot be written: %s", self._path, error)
            self.close()


def _as_ours(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
