"""Carries out what the scheduler decides: starts and stops engines, hands out leases."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rolecall.backends.base import Backend
from rolecall.core.events import (
    Adopted,
    Arrived,
    BecameReady,
    Cancelled,
    Configured,
    Effect,
    Event,
    Exited,
    FellAsleep,
    Freed,
    Grant,
    Measured,
    Observed,
    Reject,
    Released,
    ShutdownRequested,
    Sleep,
    Start,
    Stop,
    Tick,
    UnloadRequested,
    Wake,
)
from rolecall.core.learning import Footprint
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Candidate, Demand, Selection
from rolecall.core.slot import ModelStatus
from rolecall.core.vram import Placement
from rolecall.errors import NotLoaded, RolecallError
from rolecall.runtime.engine import Engine, EngineMaker
from rolecall.runtime.footprints import Footprints
from rolecall.runtime.gpu import GpuReport
from rolecall.runtime.instance import Exit, Instance, Listener
from rolecall.runtime.launcher import memory_mb
from rolecall.runtime.lease import Lease, Outlook, Ticket
from rolecall.runtime.memory import MemoryWatch, Tenant, grown_mb, held_mb, is_back, is_free
from rolecall.runtime.progress import Progress

log = logging.getLogger(__name__)

TICK_S = 0.5

_LOOK_S = 1.0
"""Between two looks at the GPUs."""

_RELEASE_LIMIT_S = 10.0
"""How long memory of an engine that is gone may be shown as taken; what still is then, counts as foreign."""

_RELEASE_POLL_S = 0.1
_NOISE_MB, _NOISE = 32, 0.02
"""By how much what a model holds has to change to be taken in."""

_PROGRESS_S = 10.0
"""An answer that got on within this time keeps its engine from being ended for failing its health probe."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A model's row for ``status``: what the scheduler knows, and the process. Memory in MB, times in s."""

    model: ModelStatus
    backend: str
    pid: int | None = None
    port: int | None = None
    rss_mb: int | None = None
    uptime_s: float | None = None
    load_fraction: float | None = None
    load_eta_s: float | None = None


@dataclass(slots=True)
class Supervisor:
    """Everything here runs on one event loop, so that one event at a time reaches the scheduler."""

    scheduler: Scheduler
    maker: EngineMaker
    backend_for: Callable[[ModelEntry], Backend]
    footprints: Footprints | None = None
    memory: MemoryWatch | None = None
    autostart: bool = True
    keeps_engines: bool = False
    record: Callable[[Event, float, list[Effect]], None] | None = None
    """Is told every event and what was decided."""
    hang_up: Callable[[str], None] | None = None
    """Closes the connections that are kept to an address: engines end fast only when nobody is connected."""
    _engines: dict[str, Engine] = field(default_factory=dict, init=False)
    _leaving: dict[int, Tenant] = field(default_factory=dict, init=False)
    """Engines that are giving memory back, by ``id``: two of one name may do so at a time."""
    _entries: dict[str, ModelEntry] = field(default_factory=dict, init=False)
    _tickets: dict[int, Ticket] = field(default_factory=dict, init=False)
    _ids: itertools.count[int] = field(default_factory=itertools.count, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _alarm: asyncio.TimerHandle | None = field(default=None, init=False)
    _rings_at: float = field(default=0, init=False)
    _looked_at: float = field(default=0, init=False)
    _closing: bool = field(default=False, init=False)

    # -- what the gateway calls

    def configure(self, configured: Configured) -> None:
        """Take in a new registry or profile; engines that no longer match are stopped once idle."""
        self._entries = {spec.name: spec.entry for spec in configured.specs}
        self._post(configured)
        for name, engine in self._engines.items():
            if self.scheduler.state(name) is not State.STOPPING:  # what changed does not concern the process
                engine.entry = self._entries.get(name, engine.entry)

    def request(self, entries: Iterable[ModelEntry], demand: Demand, *, autostart: bool | None = None) -> Ticket:
        """Queue a request that any of the models may serve; raises ``NotLoaded`` where nothing may be started for it.

        Whoever has a ticket waits for its lease or leaves.
        """
        names = tuple([entry.name for entry in entries])
        if not (self.autostart if autostart is None else autostart):
            names = self._loaded(names)
        number = next(self._ids)
        lease = asyncio.get_running_loop().create_future()
        ticket = self._tickets[number] = Ticket(number, time.monotonic(), lease, self._outlook, self._leave)
        try:
            self._post(Arrived(number, demand, names))
        except BaseException:
            ticket.leave()
            raise
        return ticket

    def lease_at_once(self, entries: Iterable[ModelEntry], demand: Demand) -> Lease | None:
        """Return a lease if a loaded model has a place free and nobody waits for any; else None: then ``request``."""
        if not self.autostart:
            return None
        arrived = Arrived(next(self._ids), demand, tuple([entry.name for entry in entries]))
        now = time.monotonic()
        grant = self.scheduler.at_once(arrived, now)
        if grant is None:
            return None
        if self.record is not None:
            self.record(arrived, now, [grant])
        return self._lease_of(self._engines[grant.model], grant.selection)

    async def acquire(self, entries: Iterable[ModelEntry], demand: Demand, *, autostart: bool | None = None) -> Lease:
        """Wait for a model that may serve ``demand`` and return the lease; raises any ``RolecallError``.

        Cancelling the wait takes the request out of the queue.
        """
        return await self.request(entries, demand, autostart=autostart).wait()

    async def load(self, entry: ModelEntry) -> None:
        """Start a model and wait until it is ready; raises ``StartFailed`` and what ``acquire`` raises."""
        (await self.acquire([entry], Demand(), autostart=True)).release()

    async def unload(self, entry: ModelEntry) -> None:
        """Stop a model once its answers in flight are finished, and wait until its process is gone."""
        self._post(UnloadRequested(entry.name))
        engine = self._engines.get(entry.name)
        if engine is not None:
            await engine.gone.wait()

    def candidates(self) -> list[Candidate]:
        """Return all models of the registry as selection sees them now."""
        return self.scheduler.candidates(self._entries)

    def status(self) -> list[EngineStatus]:
        """Return a row per model of the registry, and per engine that still runs without one."""
        return [self._row(model) for model in self.scheduler.status(time.monotonic())]

    def preload(self) -> None:
        """Start the models that ask for it, one after the other, in the background."""
        self._spawn(self._load_all([entry for entry in self._entries.values() if entry.preload]), "preload")

    async def _load_all(self, entries: Iterable[ModelEntry]) -> None:
        for entry in entries:
            try:
                await self.load(entry)
            except RolecallError as error:
                log.warning("preload of %s failed: %s", entry.name, error.message)

    def stop_admission(self) -> None:
        """Refuse all waiting and coming requests; answers in flight go on."""
        self._post(ShutdownRequested())

    async def close(self) -> None:
        """Stop all engines and wait until nothing is left of them; those that are to be kept are let go instead."""
        self.stop_admission()
        self._closing = True
        for name, engine in list(self._engines.items()):
            if self.keeps_engines and engine.instance is not None and self.scheduler.state(name) is State.READY:
                engine.instance.let_go()
            else:
                self._post(UnloadRequested(name))
                if engine.instance is not None:
                    self._hang_up(engine)
                    engine.instance.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.footprints is not None:
            await asyncio.to_thread(self.footprints.save)
        if self._alarm is not None:
            self._alarm.cancel()

    async def adopt(self) -> None:
        """Take over the engines of an earlier run that still match their entries, and end the others."""
        for engine in await asyncio.to_thread(
            self.maker.adopt, self._entries, frozenset(self.scheduler.ledger.devices)
        ):
            self._engines[engine.name] = engine
            self._live(engine, adopted=True)
        await asyncio.gather(*(engine.settled.wait() for engine in self._engines.values()))
        await self._look()

    async def tick(self) -> None:
        """Let the scheduler know that time passes, and look at the GPUs now and then; to be called every ``TICK_S``."""
        self._post(Tick())
        if time.monotonic() - self._looked_at >= _LOOK_S and self.memory is not None:
            await self._look()
        if self.footprints is not None:
            await asyncio.to_thread(self.footprints.save)

    # -- effects

    def _post(self, event: Event) -> None:
        now = time.monotonic()
        effects = self.scheduler.handle(event, now)
        for effect in effects:
            self._carry_out(effect)
        self._set_alarm()
        if self.record is not None:
            self.record(event, now, effects)

    def _carry_out(self, effect: Effect) -> None:
        """Apply one effect; what fails ends the engine that it is about, and the others are carried out anyway."""
        try:
            self._apply(effect)
        except Exception:
            log.exception("%r cannot be carried out", effect)
            if isinstance(effect, Grant | Reject):
                raise
            if engine := self._engines.get(effect.model):
                self._stop(engine)
            else:  # it was not even made
                self._soon(self._post, Exited(effect.model, "it cannot be started; rolecall's own log says why"))
                self._soon(self._post, Freed(effect.model))

    def _set_alarm(self) -> None:
        """Have the scheduler told of the moment when time alone changes something: ticks alone would be late.

        An alarm that rings too early does no harm: most requests put the moment off by a little.
        """
        moment = self.scheduler.wake_at()
        if self._alarm is not None:
            if moment is not None and self._rings_at <= moment:
                return
            self._alarm.cancel()
            self._alarm = None
        if moment is not None and not self._closing:
            delay_s = max(0.001, moment - time.monotonic())
            self._alarm, self._rings_at = asyncio.get_running_loop().call_later(delay_s, self._ring), moment

    def _ring(self) -> None:
        self._alarm = None
        self._post(Tick())

    def _leave(self, waiter: int) -> None:
        self._tickets.pop(waiter, None)
        self._post(Cancelled(waiter))

    def _soon(self, what: Callable[..., None], *arguments: Any) -> None:
        """Do what results from an effect once all effects of the present event are carried out."""
        asyncio.get_running_loop().call_soon(what, *arguments)

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_tell_failure)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Grant(waiter):
                self._grant(effect, self._tickets.pop(waiter))
            case Reject(waiter, error):
                if not (lease := self._tickets.pop(waiter).lease).done():
                    lease.set_exception(error)
            case Start(model, placement):
                self._start(model, placement)
            case Stop(model):
                self._stop(self._engines[model])
            case Sleep(model, level):
                self._sleep(self._engines[model], level)
            case Wake(model):
                self._wake(self._engines[model])

    def _grant(self, grant: Grant, ticket: Ticket) -> None:
        lease = self._lease(grant, ticket.arrived)
        if ticket.lease.done():  # its client left in this very moment
            self._soon(lease.release)
        else:
            ticket.lease.set_result(lease)

    def _start(self, model: str, placement: Placement) -> None:
        entry = self._entries[model]
        try:
            engine = self.maker.make(entry, placement, self._ports())
        except (OSError, ValueError) as error:
            engine = Engine(entry, self.backend_for(entry), placement)
            self._engines[model] = engine
            self._soon(self._gone, engine, Exit(f"it cannot be started: {error}"))
            return
        self._engines[model] = engine
        self._disturb(engine)
        if engine.instance is None:
            engine.ready_at = engine.started_at
            self._soon(self._post, BecameReady(model))
            return
        self._live(engine)

    def _ports(self) -> set[int]:
        return {engine.port for engine in self._engines.values()}

    def _stop(self, engine: Engine) -> None:
        if engine.instance is None:
            self._soon(self._gone, engine, None)
            return
        self.maker.note_unready(engine)
        self._hang_up(engine)
        engine.instance.stop()

    def _hang_up(self, engine: Engine) -> None:
        if self.hang_up is not None:
            self.hang_up(engine.upstream().base_url)

    def _sleep(self, engine: Engine, level: int) -> None:
        if isinstance(engine.instance, Instance):
            self.maker.note_unready(engine)
            engine.seen_before = None
            engine.instance.sleep(level)

    def _wake(self, engine: Engine) -> None:
        if isinstance(engine.instance, Instance):
            engine.started_at, engine.ready_at = time.monotonic(), None
            self._disturb(engine)
            engine.instance.wake()

    # -- the life of an engine

    def _live(self, engine: Engine, *, adopted: bool = False) -> None:
        told = Listener(
            on_started=lambda _: None,
            on_ready=lambda: self._ready(engine, adopted=adopted),
            on_asleep=lambda: self._asleep(engine),
            on_exit=lambda exit_: self._gone(engine, exit_),
            is_progressing=lambda: engine.is_progressing(_PROGRESS_S),
        )
        self._spawn(self._run(engine, told, adopted=adopted), f"engine {engine.name}")

    async def _run(self, engine: Engine, told: Listener, *, adopted: bool) -> None:
        instance = engine.instance
        try:
            if self.memory is not None and engine.reserved_mb and not adopted:  # else its memory is taken already
                engine.seen_before = await self.memory.look()
            if instance is not None:
                await instance.run(told)
        finally:  # whatever happened, the scheduler is told; the second time nothing happens
            if not self._closing and engine.instance is instance:  # else it has moved, and another task runs it
                self._gone(engine, Exit("the task that watched it failed"))

    def _ready(self, engine: Engine, *, adopted: bool) -> None:
        is_first = not engine.settled.is_set()
        engine.ready_at = time.monotonic()
        engine.settled.set()
        self.maker.note_ready(engine)
        ready: BecameReady | None = None
        if adopted and is_first:
            self._post(Adopted(engine.name, engine.placement))
        else:
            load_s = engine.ready_at - engine.started_at
            if self.footprints is not None:
                self.footprints.observe_time(engine.entry, engine.placement, load_s, woke=not is_first)
            ready = BecameReady(engine.name, load_s)
        if self.memory is not None and engine.reserved_mb:
            self._spawn(self._measure(engine, ready), f"measure {engine.name}")
        elif ready is not None:
            self._post(ready)

    def _asleep(self, engine: Engine) -> None:
        residual_mb = self.scheduler.residual_mb(engine.name)
        rest_mb = {device: min(mb, residual_mb) for device, mb in engine.reserved_mb.items()}
        held = Tenant(dict(self.scheduler.ledger.held_on(engine.name)), is_settled=False)
        self._see_off_later(engine, held, rest_mb, FellAsleep(engine.name))

    def _gone(self, engine: Engine, exit_: Exit | None) -> None:
        name = engine.name
        if self._engines.get(name) is not engine:  # told twice: it could not start, and was to stop at once
            return
        if exit_ is not None and exit_.lost_port and self.maker.move(engine, self._ports()):
            self._live(engine)
            return
        del self._engines[name]
        held = Tenant(dict(self.scheduler.ledger.held_on(name)), is_settled=False)
        if exit_ is not None and exit_.out_of_memory and self.footprints is not None and engine.ready_at is None:
            self.footprints.ran_out(engine.entry, engine.placement)
        engine.has_run_out = exit_ is not None and exit_.out_of_memory
        error = "it was stopped" if exit_ is None else exit_.error
        if self.scheduler.state(name) is not State.STOPPED:  # else it was to be taken over, and is not well
            self._post(Exited(name, error, out_of_memory=engine.has_run_out))
        for lease in list(engine.leases):  # its requests are over, whatever their clients still do
            lease.release()
        engine.settled.set()
        engine.gone.set()
        self._see_off_later(engine, held, {}, Freed(name))

    def _see_off_later(self, engine: Engine, held: Tenant, rest_mb: dict[str, int], freed: Freed | FellAsleep) -> None:
        if self.memory is None or not engine.reserved_mb or self._closing:
            self._post(freed)
        else:
            self._leaving[id(engine)] = held
            self._spawn(self._see_off(engine, held, rest_mb, freed), f"memory of {engine.name}")

    # -- what the GPUs say

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

    def _is_present(self, engine: Engine) -> bool:
        return self._engines.get(engine.name) is engine

    def _measured(self, engine: Engine, held: dict[str, int]) -> None:
        learnt = None
        if self.footprints is not None:
            total_mb = sum(held.values())
            learnt = self.footprints.observe(engine.entry, engine.placement, total_mb, again=engine.is_measured)
        self._post(Measured(engine.name, held, learnt))
        self.maker.note_held(engine, held)
        engine.is_measured, engine.seen_mb = True, sum(held.values())

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

    def _disturb(self, engine: Engine) -> None:
        """Let no model be measured by the growth of a device on which this one has just changed what it holds."""
        for other in self._engines.values():
            if other is not engine and not other.reserved_mb.keys().isdisjoint(engine.reserved_mb):
                other.seen_before = None

    # -- leases and rows

    def _lease(self, grant: Grant, arrived: float) -> Lease:
        granted = time.monotonic()
        engine = self._engines[grant.model]
        ready_at = engine.ready_at or granted
        load_s = max(0.0, min(granted, ready_at) - max(arrived, engine.started_at))
        return self._lease_of(engine, grant.selection, (granted - arrived - load_s) * 1000, load_s * 1000)

    def _lease_of(self, engine: Engine, selection: Selection, queue_ms: float = 0, load_ms: float = 0) -> Lease:
        lease = Lease(
            engine.entry,
            engine.backend,
            engine.upstream(),
            selection,
            queue_ms,
            load_ms,
            engine.gone,
            partial(self._end, engine),
            engine.ran_out,
        )
        engine.leases.add(lease)
        return lease

    def _end(self, engine: Engine, lease: Lease) -> None:
        engine.leases.discard(lease)
        self._post(Released(engine.name))
        if self.memory is not None and engine.reserved_mb and not (engine.is_weighed_again or self._closing):
            engine.is_weighed_again = True
            self._spawn(self._weigh_again(engine), f"measure {engine.name} again")

    def footprint(self, name: str) -> Footprint | None:
        """Return what a model of the registry is given, and how that is known; it looks at its files."""
        entry = self._entries.get(name)
        return None if entry is None or self.footprints is None else self.footprints.of(entry)

    def _outlook(self, waiter: int) -> Outlook | None:
        if (waits := self.scheduler.waits_for(waiter)) is None:
            return None
        model, ahead = waits
        engine, state = self._engines.get(model), self.scheduler.state(model)
        if engine is None or state is not State.STARTING:
            return Outlook(model, state, ahead)
        progress = engine.progress(self.scheduler.load_s(model))
        return Outlook(model, state, ahead, progress.fraction, progress.eta_s)

    def _loaded(self, names: tuple[str, ...]) -> tuple[str, ...]:
        loaded = tuple(name for name in names if self.scheduler.state(name) is State.READY or not self._managed(name))
        if not loaded:
            raise NotLoaded(
                f"No model that can answer is loaded ({', '.join(names)}) and autostart_enabled is off; "
                "load one with POST /v1/models/NAME/load or `rolecall load NAME`."
            )
        return loaded

    def _managed(self, name: str) -> bool:
        return self.backend_for(self._entries[name]).managed

    def _row(self, model: ModelStatus) -> EngineStatus:
        engine = self._engines.get(model.name)
        if engine is None or engine.instance is None:
            entry = engine.entry if engine else self._entries.get(model.name)
            return EngineStatus(model, entry.backend if entry else "")
        progress = engine.progress(model.load_s) if model.state is State.STARTING else Progress()
        return EngineStatus(
            model,
            engine.entry.backend,
            pid=engine.pid,
            port=engine.port or None,
            rss_mb=memory_mb(engine.pid) if engine.pid else None,
            uptime_s=time.monotonic() - engine.started_at,
            load_fraction=progress.fraction,
            load_eta_s=progress.eta_s,
        )


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)


def _noise_mb(known_mb: int) -> float:
    return max(_NOISE_MB, _NOISE * known_mb)
