"""What was read of files, for as long as they stay the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_REMEMBERED = 2048
"""A large collection: with fewer than it has models, each look at them would read all of them again."""


class FileMemory(Generic[T]):
    """Remembers what files say, the last ``MOST_REMEMBERED`` of them; safe to use from threads, one of which reads."""

    def __init__(self) -> None:
        self._known: dict[Hashable, T] = {}
        self._lock = Lock()

    def recall(self, files: Sequence[Path], read: Callable[[], T], *others: Hashable) -> T:
        """Return what ``read`` makes of the files, and of ``others`` if it goes by more; called once for each state.

        ``read`` should raise nothing, or it is called again and again. Raises ``OSError`` and ``ValueError`` for files
        that cannot be looked at.
        """
        state = (*map(_state, files), *others)
        with self._lock:
            if state not in self._known:
                while len(self._known) >= MOST_REMEMBERED:
                    del self._known[next(iter(self._known))]
                self._known[state] = read()
            return self._known[state]


def _state(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns
