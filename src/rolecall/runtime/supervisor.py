"""What the gateway calls: requests for models, loads and unloads, and what is known of each model.

`lives` and the layers below it carry out what the scheduler decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rolecall.backends.base import Upstream
from rolecall.core.events import (
    Adopted,
    Arrived,
    Cancelled,
    Configured,
    Effect,
    Event,
    Pinned,
    Purpose,
    ShutdownRequested,
    Tick,
    UnloadRequested,
)
from rolecall.core.learning import Footprint
from rolecall.core.lifecycle import State
from rolecall.core.models import ModelEntry
from rolecall.core.selection import Candidate, Demand
from rolecall.core.slot import ModelStatus
from rolecall.errors import NotLoaded, RolecallError
from rolecall.runtime.launcher import memory_mb
from rolecall.runtime.lease import Lease, Outlook, Ticket
from rolecall.runtime.lives import Lives
from rolecall.runtime.progress import Progress

log = logging.getLogger(__name__)

TICK_S = 0.5

_LOOK_S = 1.0
"""Between two looks at the GPUs."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A model's row for ``status``: what the scheduler knows, and the process. Memory in MB, times in s.

    ``uptime_s`` counts from its start or its waking, ``ready_s`` from when it could answer.
    """

    model: ModelStatus
    backend: str
    pid: int | None = None
    port: int | None = None
    rss_mb: int | None = None
    uptime_s: float | None = None
    ready_s: float | None = None
    load_fraction: float | None = None
    load_eta_s: float | None = None


@dataclass(slots=True)
class Supervisor(Lives):
    """Everything here runs on one event loop, so that one event at a time reaches the scheduler."""

    def configure(self, configured: Configured) -> None:
        """Take in a new registry or profile; engines that no longer match are stopped once idle."""
        self._entries = {spec.name: spec.entry for spec in configured.specs}
        self._post(configured)
        for name, engine in self._engines.items():
            goes = self.scheduler.state(name) is State.STOPPING or self.scheduler.is_outdated(name)
            if not goes and name in self._entries:
                engine.take_over(self._entries[name])  # what changed does not concern the process

    # -- requests

    def request(self, entries: Iterable[ModelEntry], demand: Demand, *, autostart: bool | None = None) -> Ticket:
        """Queue a request that any of the models may serve; raises ``NotLoaded`` where nothing may be started for it.

        Whoever has a ticket waits for its lease or leaves.
        """
        names = tuple([entry.name for entry in entries])
        if not (self.autostart if autostart is None else autostart):
            names = self._loaded(names)
        return self._queue(names, demand)

    def _queue(self, names: tuple[str, ...], demand: Demand, purpose: Purpose = "request") -> Ticket:
        number = next(self._ids)
        lease = asyncio.get_running_loop().create_future()
        ticket = self._tickets[number] = Ticket(number, time.monotonic(), lease, self._outlook, self._leave)
        try:
            self._post(Arrived(number, demand, names, purpose))
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

    def _leave(self, waiter: int) -> None:
        self._tickets.pop(waiter, None)
        self._post(Cancelled(waiter))

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

    def _outlook(self, waiter: int) -> Outlook | None:
        if (waits := self.scheduler.waits_for(waiter)) is None:
            return None
        model, ahead = waits
        engine, state = self._engines.get(model), self.scheduler.state(model)
        if engine is None or state is not State.STARTING:
            return Outlook(model, state, ahead)
        progress = engine.progress(self.scheduler.load_s(model))
        return Outlook(model, state, ahead, progress.fraction, progress.eta_s)

    # -- loads

    async def load(
        self, entries: Iterable[ModelEntry], demand: Demand | None = None, purpose: Purpose = "hand"
    ) -> ModelEntry:
        """Start one of the models, wait until it is ready and return it.

        Raises ``Conflict`` if it is unloaded meanwhile, ``StartFailed`` and what ``acquire`` raises.
        """
        names = tuple([entry.name for entry in entries])
        lease = await self._queue(names, demand or Demand(), purpose).wait()
        lease.release()
        return lease.entry

    async def unload(self, entry: ModelEntry) -> None:
        """Stop a model once its answers in flight are finished, and wait until its process is gone."""
        self._post(UnloadRequested(entry.name))
        engine = self._engines.get(entry.name)
        if engine is not None:
            await engine.gone.wait()

    def pin(self, entry: ModelEntry, *, pinned: bool) -> None:
        """Keep a model loaded whoever wants its place, or no longer; until its entry says something else."""
        self._post(Pinned(entry.name, pinned))

    def key_of(self, name: str) -> str | None:
        """Return the key that a model's engine asks for now; None where there is none."""
        engine = self._engines.get(name)
        return None if engine is None else engine.key

    def preload(self) -> None:
        """Start the models that ask for it, one after the other, in the background."""
        self._spawn(self._load_all([entry for entry in self._entries.values() if entry.preload]), "preload")

    async def _load_all(self, entries: Iterable[ModelEntry]) -> None:
        for entry in entries:
            try:
                await self.load([entry], purpose="preload")
            except RolecallError as error:
                log.warning("preload of %s failed: %s", entry.name, error.message)

    # -- what is known

    def candidates(self) -> list[Candidate]:
        """Return all models of the registry as selection sees them now."""
        return self.scheduler.candidates(self._entries)

    def status(self, *, weigh: bool = True) -> list[EngineStatus]:
        """Return a row per model of the registry, and per engine that still runs without one.

        To ``weigh`` the engines' processes in the host's RAM takes a millisecond for each.
        """
        return [self._row(model, weigh=weigh) for model in self.scheduler.status(time.monotonic())]

    def _row(self, model: ModelStatus, *, weigh: bool) -> EngineStatus:
        engine = self._engines.get(model.name)
        if engine is None or engine.instance is None:
            entry = engine.entry if engine else self._entries.get(model.name)
            return EngineStatus(model, entry.backend if entry else "")
        progress = engine.progress(model.load_s) if model.state is State.STARTING else Progress()
        now = time.monotonic()
        return EngineStatus(
            model,
            engine.entry.backend,
            pid=engine.pid,
            port=engine.port or None,
            rss_mb=memory_mb(engine.pid) if engine.pid and weigh else None,
            uptime_s=now - engine.started_at,
            ready_s=now - engine.ready_at if model.state is State.READY and engine.ready_at is not None else None,
            load_fraction=progress.fraction,
            load_eta_s=progress.eta_s,
        )

    @property
    def names(self) -> list[str]:
        """The models that have an engine now, in whatever state."""
        return list(self._engines)

    def answering(self) -> list[tuple[str, Upstream]]:
        """Return the engines of ours that are loaded and have a port, by model, and how they are reached."""
        return [
            (name, engine.upstream())
            for name, engine in self._engines.items()
            if engine.port and self.scheduler.state(name) is State.READY
        ]

    def footprint(self, name: str) -> Footprint | None:
        """Return what a model of the registry is given, and how that is known; it looks at its files."""
        entry = self._entries.get(name)
        return None if entry is None or self.footprints is None else self.footprints.of(entry)

    # -- the run

    async def adopt(self) -> None:
        """Take over the engines of an earlier run that still match their entries, and end the others."""
        for engine in await asyncio.to_thread(
            self.maker.adopt, self._entries, frozenset(self.scheduler.ledger.devices)
        ):
            self._engines[engine.name] = engine
            self._live(engine, adopted=True)
        await asyncio.gather(*(engine.settled.wait() for engine in self._engines.values()))
        await self._look()

    def listen(self, listener: Callable[[Event, list[Effect]], None]) -> None:
        """Have a listener told of what happens from now on, and first of the engines that run already."""
        for name, engine in self._engines.items():
            if self.scheduler.state(name) is State.READY:
                listener(Adopted(name, engine.placement), [])
        self.listeners.append(listener)

    async def tick(self) -> None:
        """Let the scheduler know that time passes, and look at the GPUs now and then; to be called every ``TICK_S``."""
        self._post(Tick())
        if time.monotonic() - self._looked_at >= _LOOK_S and self.memory is not None:
            await self._look()
        if self.footprints is not None:
            await asyncio.to_thread(self.footprints.save)

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
