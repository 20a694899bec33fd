"""The memory of large requests: kept for the next one in measure, and given back to the system in time."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable

import psutil

_GROWTH_BYTES = 32 * 2**20
"""Below that it is kept for the next requests."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGE_BYTES = 4 * 2**20
"""Blocks from that size on are pages of their own, which go back to the system with them."""


def keep_pages() -> bool:
    """Have the allocator keep the pages of what is received and sent, up to 32 MB; return whether it can.

    Of itself glibc gives the end of the heap back as soon as some hundreds of kilobytes are free there. The parts of a
    body of 10 MB, of 256 KB each, then get new pages every time, and to make these empty takes the system as long as
    all the rest of the request does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES) and mallopt(_M_TRIM_THRESHOLD, _GROWTH_BYTES))


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
        """Give memory back if there is more than after the last time; at first what importing has left."""
        held = self._held()
        if self._least is None:
            if self._trim is not None:
                await asyncio.to_thread(self._trim)
            self._least = self._held()
        elif held < self._least:
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
