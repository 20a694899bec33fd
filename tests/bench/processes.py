"""A process with all that descends from it: its CPU time, its memory, its end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")


class Tree:
    """What began with one process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def processes(self) -> list[psutil.Process]:
        """Return those that are alive."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        return []

    def cpu_s(self) -> float:
        """Return the CPU time so far, in ns steps; that of threads and children that have ended counts."""
        return sum(_cpu_s(process.pid) for process in self.processes())

    def rss_mb(self) -> float:
        """Return the resident memory, MB of 2**20 bytes; what two processes share counts twice."""
        sizes: list[int] = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes.append(process.memory_info().rss)
        return sum(sizes) / 2**20

    def end(self, patience_s: float = 5.0) -> None:
        """Ask them all to end, and kill those that do not."""
        left = self.processes()
        for kill in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    kill(process)
            _, left = psutil.wait_procs(left, patience_s)


def _cpu_s(pid: int) -> float:
    """Return the time of a process and of those of its children that it has waited for.

    The files /proc/PID/task/*/schedstat have the same resolution, but those of threads that have ended are gone. The
    clock of a process has all of its threads. Its number is what clock_getcpuclockid(3) makes of a pid.
    """
    try:
        own = time.clock_gettime(~pid << 3 | 2)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return own + (int(fields[13]) + int(fields[14])) / _TICKS


def machine_busy_s() -> float:
    """Return the CPU time that all cores together were busy since boot."""
    with Path("/proc/stat").open() as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / _TICKS


@contextlib.contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """Have what is started meanwhile run on these cores alone; None means all that there are."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
