"""How far a load is, and whether it gets on at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_BUSY_SHARE = 0.1
"""Of one core. Polled four times a second, llama-server that hangs takes none of it, an idle Python server 0.3 %."""
_BUSY_FLOOR_S = 0.03
"""Three ticks of the kernel's clock: in short spans one tick says nothing."""
_MOVED_BYTES_PER_S = 128 * 1024
"""Below every disk and network; above what polls and pages that are fetched again amount to (0.1 MB in all)."""

_CHANGING = re.compile(r"\d+(?:[.:,]\d+){2,}|\d\d+:\d\d|:\d{4,5}\b|\b\d{2,4}-\d\d(?:-\d\d)?\b")
"""Times of day, times since the start, dates and ports: a line that differs in these alone says nothing new."""
_MAX_SEEN = 20_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a load is done (0 to 0.99) and how many seconds it will still take; None where nothing is known."""

    fraction: float | None = None
    eta_s: float | None = None


def progress(
    elapsed_s: float, expected_s: float | None, read_mb: float | None = None, files_mb: float | None = None
) -> Progress:
    """Return how far a load is that has gone on for ``elapsed_s``, from how long such loads have taken.

    The rest is what is left of ``expected_s``, but no less than a tenth of what has passed: a load that takes longer
    than ever before stays at ten elevenths, and its ETA grows instead of standing at nothing. Without history there is
    no ETA, and the fraction is the part of the model's files that was read, if any was read at all.
    """
    elapsed_s = max(0.0, elapsed_s)
    if expected_s is not None and expected_s > 0:
        eta_s = max(expected_s - elapsed_s, elapsed_s / 10)
        return Progress(elapsed_s / (elapsed_s + eta_s), eta_s)
    if read_mb and files_mb and files_mb > 0:
        return Progress(min(0.99, read_mb / files_mb))
    return Progress()


@dataclass(frozen=True, slots=True)
class Effort:
    """What one process has done since it began: CPU time in seconds, bytes read, and bytes read or written."""

    cpu_s: float = 0.0
    read_bytes: int = 0
    moved_bytes: int = 0

    @classmethod
    def of(cls, pid: int) -> Effort:
        """Return the counters of a process (proc_pid_stat(5), proc_pid_io(5)); zeros for what cannot be read.

        Pages of a mapped file that were fetched are counted as major faults too: not every filesystem accounts for
        them in ``read_bytes``.
        """
        ticks, faults = 0, 0
        counters: dict[str, int] = {}
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            faults, ticks = int(fields[9]), int(fields[11]) + int(fields[12])
        with suppress(OSError, ValueError):
            lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
            counters = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
        read = max(counters.get("rchar", 0), counters.get("read_bytes", 0))
        return cls(ticks / _TICKS_PER_S, read, max(read, faults * _PAGE_BYTES) + counters.get("wchar", 0))


def efforts(pids: Iterable[int]) -> dict[int, Effort]:
    """Return the counters of several processes."""
    return {pid: Effort.of(pid) for pid in pids}


class Signs:
    """Looks for signs that a load gets on: news in the log, CPU time, bytes read or written.

    Work is measured from the last sign on, so that a process that gets little of a busy machine is not misjudged. One
    that waits, or is only polled, gives no sign.
    """

    def __init__(self, now: float) -> None:
        self.read_mb = 0.0
        self.last = now
        """When there was a sign last."""
        self._efforts: Mapping[int, Effort] = {}
        self._said: set[str] = set()

    def look(self, now: float, tail: Iterable[str], family: Mapping[int, Effort]) -> bool:
        """Whether there was a sign since the last one; ``tail`` are the log's last lines."""
        self.read_mb = max(self.read_mb, sum(effort.read_bytes for effort in family.values()) / 2**20)
        if not (self._has_news(tail) | _is_at_work(self._efforts, family, now - self.last)):
            return False
        self.last, self._efforts = now, family
        return True

    def _has_news(self, tail: Iterable[str]) -> bool:
        lines = {_CHANGING.sub("", line) for line in tail}
        news = lines - self._said
        self._said = (set() if len(self._said) > _MAX_SEEN else self._said) | lines
        return bool(news)


def _is_at_work(before: Mapping[int, Effort], now: Mapping[int, Effort], span_s: float) -> bool:
    """Counters are compared by process, since those of a child that ended are gone."""
    cpu_s, moved = 0.0, 0
    for pid, effort in now.items():
        earlier = before.get(pid, Effort())
        cpu_s += max(0.0, effort.cpu_s - earlier.cpu_s)
        moved += max(0, effort.moved_bytes - earlier.moved_bytes)
    return cpu_s >= max(_BUSY_FLOOR_S, _BUSY_SHARE * span_s) or moved >= _MOVED_BYTES_PER_S * span_s > 0
