"""What the GPUs say: of what each engine holds, of what others hold, and when memory is free again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rolecall.core.events import BecameReady, FellAsleep, Freed, Measured, Observed
from rolecall.core.lifecycle import State
from rolecall.runtime.engine import Engine
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.memory import Tenant, grown_mb, held_mb, is_back, is_free
from rolecall.runtime.posting import Posting

log = logging.getLogger(__name__)

_RELEASE_LIMIT_S = 10.0
"""How long memory of an engine that is gone may be shown as taken; what still is then, counts as foreign."""

_RELEASE_POLL_S = 0.1
_NOISE_MB, _NOISE = 32, 0.02
"""By how much what a model holds has to change to be taken in."""


@dataclass(slots=True)
class Weighing(Posting):
    """Measures engines, and sees off those that give memory back."""

    async def _look(self) -> None:
        """Take in what others hold of the GPUs, and what our engines have come to hold since they were ready."""
        if self.memory is None:
            return
        self._looked_at = time.monotonic()
        report = await self.memory.look()
        tenants = await self._tenants(report)
        if self.memory.watch(report, [*tenants.values(), *self._leaving.values()]):
            self._post(Observed(dict(self.memory.foreign)))
        for name, tenant in tenants.items():
            held, known = held_mb(report, tenant), self._engines[name].seen_mb if name in self._engines else 0
            is_ready = name in self._engines and self._is_settled(self._engines[name])
            if held and is_ready and abs(sum(held.values()) - known) > _noise_mb(known):
                self._measured(self._engines[name], held)

    async def _tenants(self, report: GpuReport, but: str = "") -> dict[str, Tenant]:
        """Return the engines as tenants of the GPUs; their processes are looked for only if the driver names any."""
        engines = [engine for name, engine in self._engines.items() if engine.reserved_mb and name != but]
        pids = [frozenset[int]()] * len(engines)
        if report.processes_mb:
            pids = await asyncio.to_thread(lambda: [engine.members() for engine in engines])
        held_on = self.scheduler.ledger.held_on
        return {
            engine.name: Tenant(dict(held_on(engine.name)), members, is_settled=self._is_settled(engine))
            for engine, members in zip(engines, pids, strict=True)
            if held_on(engine.name)
        }

    def _is_settled(self, engine: Engine) -> bool:
        return engine.ready_at is not None and self.scheduler.state(engine.name) is State.READY

    def _is_present(self, engine: Engine) -> bool:
        return self._engines.get(engine.name) is engine

    # -- what an engine holds

    async def _measure(self, engine: Engine, ready: BecameReady | None) -> None:
        """Learn what a model holds right after its load, and only then let anybody plan with what it has left."""
        try:
            held = await self._weigh(engine)
            if held is not None and self._is_present(engine):
                self._measured(engine, held)
        finally:
            if ready is not None and self._is_present(engine):
                self._post(ready)

    async def _weigh(self, engine: Engine) -> dict[str, int] | None:
        """Return what a model holds: of its processes, else by how much the devices' use grew; None if nobody knows."""
        if self.memory is None:
            return None
        report = await self.memory.look()
        tenants = await self._tenants(report)
        if engine.name not in tenants:
            return None
        held = held_mb(report, tenants[engine.name]) or engine.told_mb()
        if held is not None:
            engine.seen_before = None
        elif engine.seen_before is not None:
            held = grown_mb(engine.seen_before, report, engine.reserved_mb)
        return held

    async def _weigh_again(self, engine: Engine) -> None:
        """Learn what a model came to hold with its first answer: engines grow with it."""
        held = await self._weigh(engine)
        engine.seen_before = None  # by now others may have changed what the devices' use tells
        if held is None or not (self._is_present(engine) and self._is_settled(engine)):
            return
        if sum(held.values()) > engine.seen_mb + _noise_mb(engine.seen_mb):
            self._measured(engine, held)

    def _measured(self, engine: Engine, held: dict[str, int]) -> None:
        learnt = None
        if self.footprints is not None:
            total_mb = sum(held.values())
            learnt = self.footprints.observe(engine.entry, engine.placement, total_mb, again=engine.is_measured)
        self._post(Measured(engine.name, held, learnt))
        self.maker.note_held(engine, held)
        engine.is_measured, engine.seen_mb = True, sum(held.values())

    def _disturb(self, engine: Engine) -> None:
        """Let no model be measured by the growth of a device on which this one has just changed what it holds."""
        for other in self._engines.values():
            if other is not engine and not other.reserved_mb.keys().isdisjoint(engine.reserved_mb):
                other.seen_before = None

    # -- memory that comes back

    def _see_off_later(self, engine: Engine, held: Tenant, rest_mb: dict[str, int], freed: Freed | FellAsleep) -> None:
        if self.memory is None or not engine.reserved_mb or self._closing:
            self._post(freed)
        else:
            self._leaving[id(engine)] = held
            self._spawn(self._see_off(engine, held, rest_mb, freed), f"memory of {engine.name}")

    async def _see_off(self, engine: Engine, held: Tenant, rest_mb: dict[str, int], freed: Freed | FellAsleep) -> None:
        """Post ``freed`` once the driver shows that the engine has given its memory back, all but ``rest_mb``."""
        try:
            await self._until_free(engine, held, rest_mb)
        finally:
            self._leaving.pop(id(engine), None)
            self._disturb(engine)
            if isinstance(freed, Freed) or self._is_present(engine):
                self._post(freed)

    async def _until_free(self, engine: Engine, held: Tenant, rest_mb: dict[str, int]) -> None:
        """Wait for the memory; what is still taken after a while counts as foreign, so that nobody plans with it."""
        deadline = time.monotonic() + _RELEASE_LIMIT_S
        while self.memory is not None and not self._closing:
            report = await self.memory.look()
            others = await self._tenants(report, but=engine.name)
            leaving = [tenant for key, tenant in self._leaving.items() if key != id(engine)]
            members = await asyncio.to_thread(engine.members) if rest_mb and report.processes_mb else frozenset()
            staying = [*others.values(), *leaving, Tenant(rest_mb, members)]
            is_over = time.monotonic() >= deadline
            if is_over:
                log.warning("memory of %s is still taken %g s after it ended", engine.name, _RELEASE_LIMIT_S)
            if is_over or self._is_free(report, engine, held, staying):
                self._leaving.pop(id(engine), None)
                if self.memory.watch(report, staying):  # before anybody plans with what is free now
                    self._post(Observed(dict(self.memory.foreign)))
                return
            await asyncio.sleep(_RELEASE_POLL_S)

    def _is_free(self, report: GpuReport, engine: Engine, held: Tenant, staying: Iterable[Tenant]) -> bool:
        """Whether the driver shows what the engine held as free, though others may take memory at the same time."""
        if self.memory is None or is_free(report, held, staying, self.memory.foreign):
            return True
        return engine.seen_before is not None and is_back(engine.seen_before, report, held.reserved_mb)


def _noise_mb(known_mb: int) -> float:
    return max(_NOISE_MB, _NOISE * known_mb)
