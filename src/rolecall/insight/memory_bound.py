"""A bound for the memory of a process while it does what somebody else has written."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded_memory(memory_mb: int) -> Iterator[None]:
    """Bound the memory of the process: DuckDB's own limit is not for texts, one ``repeat`` makes gigabytes of them.

    The process may take twice ``memory_mb`` (MB) and 512 MB more than it has; beyond that there is a MemoryError,
    or the database's error for the same.
    """
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no file of ours
        used = int(file.read().split()[5]) * resource.getpagesize()
    limit = used + (2 * memory_mb + 512) * 2**20
    known = [each for each in (before, most) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([limit, *known]), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))
