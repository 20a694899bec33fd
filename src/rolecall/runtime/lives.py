"""The life of engines, from the decision to start one until nothing is left of it; and the leases of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from rolecall.core.events import (
    Adopted,
    BecameReady,
    Effect,
    Exited,
    FellAsleep,
    Freed,
    Grant,
    Reject,
    Released,
    Sleep,
    Start,
    Stop,
    Wake,
)
from rolecall.core.lifecycle import State
from rolecall.core.reductions import Reduction, told
from rolecall.core.selection import Selection
from rolecall.core.vram import Placement
from rolecall.runtime.engine import Engine
from rolecall.runtime.instance import Exit, Instance, Listener
from rolecall.runtime.lease import Lease, Ticket
from rolecall.runtime.memory import Tenant
from rolecall.runtime.weighing import Weighing

log = logging.getLogger(__name__)

_PROGRESS_S = 10.0
"""An answer that got on within this time keeps its engine from being ended for failing its health probe."""


@dataclass(slots=True)
class Lives(Weighing):
    """Applies the scheduler's decisions to engines and to those who wait for one."""

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Grant(waiter):
                self._grant(effect, self._tickets.pop(waiter))
            case Reject(waiter, error):
                if not (lease := self._tickets.pop(waiter).lease).done():
                    lease.set_exception(error)
            case Start(model, placement, reduction):
                self._start(model, placement, reduction)
            case Stop(model):
                self._stop(self._engines[model])
            case Sleep(model, level):
                self._sleep(self._engines[model], level)
            case Wake(model):
                self._wake(self._engines[model])

    # -- engines

    def _start(self, model: str, placement: Placement, reduction: Reduction | None) -> None:
        entry = self._entries[model]
        if reduction is not None:
            how = "on the CPU" if reduction.on_cpu else f"with a context of {reduction.context_tokens} tokens"
            log.warning("%s lacks memory, and is started %s", model, how)
        try:
            engine = self.maker.make(entry, placement, self._ports(), reduction)
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

    # -- what becomes of them

    def _live(self, engine: Engine, *, adopted: bool = False) -> None:
        listener = Listener(
            on_started=lambda _: None,
            on_ready=lambda: self._ready(engine, adopted=adopted),
            on_asleep=lambda: self._asleep(engine),
            on_exit=lambda exit_: self._gone(engine, exit_),
            is_progressing=lambda: engine.is_progressing(_PROGRESS_S),
        )
        self._spawn(self._run(engine, listener, adopted=adopted), f"engine {engine.name}")

    async def _run(self, engine: Engine, listener: Listener, *, adopted: bool) -> None:
        instance = engine.instance
        try:
            if self.memory is not None and engine.reserved_mb and not adopted:  # else its memory is taken already
                engine.seen_before = await self.memory.look()
            if instance is not None:
                await instance.run(listener)
        finally:  # whatever happened, the scheduler is told; the second time nothing happens
            if not self._closing and engine.instance is instance:  # else it has moved, and another task runs it
                self._gone(engine, Exit("the task that watched it failed"))

    def _ready(self, engine: Engine, *, adopted: bool) -> None:
        is_first = not engine.settled.is_set()
        engine.ready_at = time.monotonic()
        engine.settled.set()
        engine.release_port()
        self.maker.note_ready(engine)
        self._passed_over = {pair for pair in self._passed_over if pair[0] != engine.name}
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
        if exit_ is not None:
            self.maker.note_ended(engine)
        is_to_go = self.scheduler.state(name) is State.STOPPING
        if exit_ is not None and exit_.lost_port and not is_to_go and self.maker.move(engine, self._ports()):
            self._live(engine)
            return
        del self._engines[name]
        engine.release_port()
        held = Tenant(dict(self.scheduler.ledger.held_on(name)), is_settled=False)
        if exit_ is not None and exit_.out_of_memory and self.footprints is not None and engine.ready_at is None:
            self.footprints.ran_out(engine.entry, engine.placement)
        engine.ended = exit_
        error = "it was stopped" if exit_ is None else exit_.error
        if self.scheduler.state(name) is not State.STOPPED:  # else it was to be taken over, and is not well
            self._post(Exited(name, error, engine.ran_out(), by_itself=exit_ is not None))
        for lease in list(engine.leases):  # its requests are over, whatever their clients still do
            lease.release()
        engine.settled.set()
        engine.gone.set()
        self._see_off_later(engine, held, {}, Freed(name))

    # -- leases

    def _grant(self, grant: Grant, ticket: Ticket) -> None:
        lease = self._lease(grant, ticket.arrived)
        if ticket.lease.done():  # its client left in this very moment
            self._soon(lease.release)
        else:
            ticket.lease.set_result(lease)

    def _lease(self, grant: Grant, arrived: float) -> Lease:
        granted = time.monotonic()
        engine = self._engines[grant.model]
        ready_at = engine.ready_at or granted
        load_s = max(0.0, min(granted, ready_at) - max(arrived, engine.started_at))
        return self._lease_of(engine, grant.selection, (granted - arrived - load_s) * 1000, load_s * 1000)

    def _tell_passed_over(self, engine: Engine, names: Iterable[str]) -> None:
        for name in names:
            if (name, engine.name) not in self._passed_over:
                self._passed_over.add((name, engine.name))
                log.warning("%s ran out of memory; %s answers instead", name, engine.name)

    def _lease_of(self, engine: Engine, selection: Selection, queue_ms: float = 0, load_ms: float = 0) -> Lease:
        self._tell_passed_over(engine, selection.out_of_memory)
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
            told(engine.reduction, selection.out_of_memory),
        )
        engine.leases.add(lease)
        return lease

    def _end(self, engine: Engine, lease: Lease) -> None:
        engine.leases.discard(lease)
        self._post(Released(engine.name))
        if self.memory is not None and engine.reserved_mb and not (engine.is_weighed_again or self._closing):
            engine.is_weighed_again = True
            self._spawn(self._weigh_again(engine), f"measure {engine.name} again")
