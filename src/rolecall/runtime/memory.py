"""What the GPUs really hold: of our engines, of others, and whether an engine's memory is free again."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from rolecall.runtime.gpu import GpuProbe, GpuReport

log = logging.getLogger(__name__)

_TOLERANCE_MB = 200
_TOLERANCE = 0.05
"""How far the driver's figure may be off from what should be there when memory counts as free."""

_SILENCE = GpuReport((), "the driver does not answer", None)


@dataclass(frozen=True, slots=True)
class Tenant:
    """An engine as far as memory is concerned: what is reserved for it by device (MB), and its processes.

    ``is_settled`` says that it holds what is reserved; not while it loads, falls asleep, wakes or goes. A daemon that
    others run has no processes that we know of.
    """

    reserved_mb: Mapping[str, int]
    pids: frozenset[int] = frozenset()
    is_settled: bool = True


def held_mb(report: GpuReport, tenant: Tenant) -> dict[str, int] | None:
    """Return what the driver says the tenant's processes hold, MB by device; None where it does not tell."""
    held = {}
    for device in tenant.reserved_mb:
        listed = report.processes_mb.get(device, {})
        held[device] = sum(mb for pid, mb in listed.items() if pid in tenant.pids)
    return held if held and all(held.values()) else None


def grown_mb(before: GpuReport, after: GpuReport, devices: Iterable[str]) -> dict[str, int] | None:
    """Return by how many MB the use of each device has grown; None if one of them is missing or has not grown."""
    was, now = _used_mb(before), _used_mb(after)
    grown = {device: now.get(device, 0) - was.get(device, 0) for device in devices}
    return grown if grown and all(mb > 0 for mb in grown.values()) else None


def foreign_mb(report: GpuReport, tenants: Iterable[Tenant], before: Mapping[str, int]) -> dict[str, int]:
    """Return what others hold, MB by device; as ``before`` where a tenant is on the move and nothing tells its part."""
    ours: dict[str, int] = {}
    unclear: set[str] = set()
    for tenant in tenants:
        told = held_mb(report, tenant)
        if told is None and not tenant.is_settled:
            unclear.update(tenant.reserved_mb)
        for device, mb in (told or tenant.reserved_mb).items():
            ours[device] = ours.get(device, 0) + mb
    used = _used_mb(report)
    return {d: before.get(d, 0) if d in unclear else max(0, mb - ours.get(d, 0)) for d, mb in used.items()}


def is_free(report: GpuReport, gone: Tenant, others: Iterable[Tenant], foreign: Mapping[str, int]) -> bool:
    """Whether the memory of an engine that is gone is free: what is used is what the others and strangers hold."""
    expected = dict(foreign)
    for tenant in others:
        for device, mb in (held_mb(report, tenant) or tenant.reserved_mb).items():
            expected[device] = expected.get(device, 0) + mb
    used = _used_mb(report)
    return all(
        used.get(device, 0) <= expected.get(device, 0) + max(_TOLERANCE_MB, _TOLERANCE * mb)
        for device, mb in gone.reserved_mb.items()
    )


def is_back(before: GpuReport, now: GpuReport, devices: Iterable[str]) -> bool:
    """Whether no more is used of the devices than before; False if one of them was not seen then."""
    was, used = _used_mb(before), _used_mb(now)
    return all(device in was and used.get(device, 0) <= was[device] + _TOLERANCE_MB for device in devices)


def _used_mb(report: GpuReport) -> dict[str, int]:
    return {gpu.uuid: gpu.vram_total_mb - gpu.vram_free_mb for gpu in report.gpus}


@dataclass(slots=True)
class MemoryWatch:
    """Looks at the GPUs off the event loop, and remembers what others were seen to hold."""

    probe: GpuProbe
    limit_s: float = 2.0
    foreign: dict[str, int] = field(default_factory=dict)
    latest: GpuReport | None = field(default=None, init=False)
    """What the driver said last."""
    _asked: asyncio.Future[GpuReport] | None = field(default=None, init=False)
    _asked_at: float = field(default=0.0, init=False)
    _is_hanging: bool = field(default=False, init=False)

    async def look(self) -> GpuReport:
        """Return a fresh report; no GPUs in it while the driver fails, or does not answer within ``limit_s``.

        All who look while the driver is being asked share its answer; one that hangs is not asked again before it has
        answered.
        """
        if self._asked is None or self._asked.done():
            self._asked, self._asked_at, self._is_hanging = self._ask(), time.monotonic(), False
        elif self._is_hanging:
            return _SILENCE
        asked = self._asked
        await asyncio.wait({asked}, timeout=max(0.0, self._asked_at + self.limit_s - time.monotonic()))
        if asked.done():
            self.latest = asked.result()
            return self.latest
        if not self._is_hanging:
            log.warning("the GPU driver has not answered for %g s; models go on without its figures", self.limit_s)
        self._is_hanging = True
        return _SILENCE

    def _ask(self) -> asyncio.Future[GpuReport]:
        """Ask in a thread that nobody waits for at the end, unlike those of the loop's executor."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[GpuReport] = loop.create_future()

        def ask() -> None:
            report = self._report()
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(answer.set_result, report)

        threading.Thread(target=ask, name="GPU probe", daemon=True).start()
        return answer

    def _report(self) -> GpuReport:
        try:
            return self.probe.report()
        except Exception:
            log.exception("the GPU driver cannot be asked; models go on without its figures")
            return _SILENCE

    def watch(self, report: GpuReport, tenants: Iterable[Tenant]) -> bool:
        """Take in a report; whether what others hold has changed."""
        if not report.gpus:
            return False
        before, self.foreign = self.foreign, foreign_mb(report, tenants, self.foreign)
        return before != self.foreign
