"""Memory that large requests leave behind is given back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

import psutil

_GROWTH_BYTES = 32 * 2**20
"""Below that it is kept for the next requests."""


class Tidy:
    """Looks at the memory of this process now and then, and gives back what is free in it.

    The allocator keeps the pages between blocks that are in use, after some bodies of 10 MB hundreds of megabytes, and
    waits for the garbage collector too, which is called by the number of objects and not by their size.
    """

    def __init__(self, trim: Callable[[], object] | None = None, held: Callable[[], int] | None = None) -> None:
        self._trim = trim or _allocator_trim()
        self._held = held or (lambda: int(psutil.Process().memory_info().rss))
        self._least: int | None = None

    async def look(self) -> None:
        """Give memory back if there is more than after the last time."""
        held = self._held()
        if self._least is None or held < self._least:
            self._least = held
        elif self._trim is not None and held > self._least + _GROWTH_BYTES:
            gc.collect()
            await asyncio.to_thread(self._trim)
            self._least = self._held()


def _allocator_trim() -> Callable[[], object] | None:
    """Return glibc's ``malloc_trim``; None where there is another allocator."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return lambda: trim(0)
