"""The one thread that works on the datasets' file, so that the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rolecall.errors import DatasetsUnavailable, DiskFull
from rolecall.vision.datasets_store import DatasetStore

T = TypeVar("T")

IDLE_S = 30.0
"""After that long without work the file is closed, so that other programs can read it."""


class StoreThread:
    """Opens the store when it is needed, and closes it when it is not; also after a failure, to begin cleanly."""

    def __init__(self, path: Path, idle_s: float = IDLE_S) -> None:
        self.path = path
        self._idle_s = idle_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="datasets")
        self._store: DatasetStore | None = None
        self._calls = 0
        self._closing: asyncio.TimerHandle | None = None

    async def run(self, work: Callable[[DatasetStore], T]) -> T:
        """Return what ``work`` does with the store, once all work before it is done.

        It is done to its end even if the caller is cancelled meanwhile. Raises what ``DatasetStore`` does.
        """
        self._calls += 1
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._work, work)
        finally:
            self._calls -= 1
            if not self._calls:
                self._closing = loop.call_later(self._idle_s, self._thread.submit, self._close)

    def _work(self, work: Callable[[DatasetStore], T]) -> T:
        if self._store is None:
            self._store = DatasetStore(self.path)
        try:
            return work(self._store)
        except (DatasetsUnavailable, DiskFull):
            self._close()  # DuckDB refuses to go on after some of them
            raise

    def _close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    async def aclose(self) -> None:
        """Finish the work that was given, and close the file."""
        if self._closing is not None:
            self._closing.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)
