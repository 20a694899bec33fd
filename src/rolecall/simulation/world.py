"""Carries out a policy's effects in simulated time: engines that load, answer and stop, clients that come back."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from rolecall.core.events import (
    Arrived,
    BecameReady,
    Effect,
    Event,
    Exited,
    FellAsleep,
    Freed,
    Grant,
    Reject,
    Released,
    Sleep,
    SleepCost,
    Start,
    Stop,
    Tick,
    Wake,
)
from rolecall.core.lifecycle import State
from rolecall.core.vram import Placement
from rolecall.simulation.measures import Book, Measures
from rolecall.simulation.workload import Chain, Model, Step, Workload

TIMER_S = 1e-6
"""A timer rings this much late, never early."""

_AGAIN_S = 1.0
"""A timer that is due although it has just rung rings again after this time."""

_STALLED_S = 7 * 24 * 3600.0
"""If nothing but timers happens for this long while requests wait, the policy has forgotten them."""


class SimulationError(Exception):
    """A policy did what no machine allows, or let a request wait for ever."""


class Policy(Protocol):
    """Whatever takes the scheduler's events and answers with its effects."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event at ``now`` (s) and return what has to be done, in order."""

    def wake_at(self) -> float | None:
        """Return when a ``Tick`` is due; None if time alone changes nothing."""


@dataclass(slots=True)
class Engine:
    """A model's engine from its start to its end."""

    model: Model
    placement: Placement
    state: State = State.STARTING
    in_flight: int = 0
    began_s: float = 0
    granted: int = 0
    """Requests since it was started or woken."""
    asleep: SleepCost | None = None
    """How it sleeps, or slept until it was woken."""
    has_dozed: bool = False
    """Whether it sleeps and has given back its memory."""

    def held_mb(self) -> dict[str, int]:
        """Return what it holds by device."""
        residual_mb = self.asleep.residual_mb if self.has_dozed and self.asleep else None
        return {share.device: share.mb if residual_mb is None else residual_mb for share in self.placement}


@dataclass(slots=True)
class Pending:
    """A request that waits, and where its client is."""

    arrived: float
    chain: Chain
    at: int

    @property
    def step(self) -> Step:
        """The request itself."""
        return self.chain.steps[self.at]


class World:
    """One workload under one policy; ``run`` it once."""

    def __init__(self, workload: Workload, policy: Policy) -> None:
        self.workload = workload
        self.policy = policy
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.waiting: dict[int, Pending] = {}
        self.book = Book(sum(workload.machine.gpus_mb))
        self._capacity_mb = {device.id: device.capacity_mb for device in workload.machine.devices}
        self._ids = itertools.count(1)
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._rang = -1.0
        self._acted = 0.0

    def run(self) -> Measures:
        """Let every client come and be answered; raises ``SimulationError`` if the policy cannot be right."""
        self._post(self.workload.configured())
        for chain in self.workload.chains:
            self._later(chain.start_s, partial(self._arrive, chain, 0))
        while self.book.ended < self.workload.requests:
            self._next()
        return self.book.close(self.workload.requests)

    # -- time

    def _next(self) -> None:
        planned = self._agenda[0][0] if self._agenda else None
        rings = self._rings_at()
        if rings is not None and (planned is None or rings < planned):
            if planned is None and rings - self._acted > _STALLED_S:
                raise SimulationError(f"{len(self.waiting)} requests wait since {self._acted:.1f} s")
            self.now = self._rang = rings
            self._post(Tick())
        elif planned is not None:
            self.now, _, happen = heapq.heappop(self._agenda)
            self._acted = self.now
            happen()
        else:
            raise SimulationError(f"{len(self.waiting)} requests wait at {self.now:.1f} s, and nothing is to happen")

    def _rings_at(self) -> float | None:
        wake_at = self.policy.wake_at()
        if wake_at is None:
            return None
        return max(self.now, wake_at + TIMER_S if wake_at > self._rang else self._rang + _AGAIN_S)

    def _later(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._order), happen))

    # -- what happens

    def _arrive(self, chain: Chain, at: int) -> None:
        waiter = next(self._ids)
        pending = self.waiting[waiter] = Pending(self.now, chain, at)
        self.book.arrive(waiter, pending.step.wanted, self.now)
        self._post(Arrived(waiter, *self.workload.demand(pending.step.wanted)))

    def _answered(self, engine: Engine, pending: Pending) -> None:
        engine.in_flight -= 1
        self._note(engine)
        self.book.answered(self.now)
        self._post(Released(engine.model.name))
        self._go_on(pending)

    def _go_on(self, pending: Pending) -> None:
        if pending.at + 1 < len(pending.chain.steps):
            self._later(pending.step.think_s, partial(self._arrive, pending.chain, pending.at + 1))

    def _is_ready(self, engine: Engine) -> None:
        if engine.state is State.STARTING:
            engine.state, engine.asleep = State.READY, None
            self._note(engine)
            self._post(BecameReady(engine.model.name, self.now - engine.began_s))

    def _dozes(self, engine: Engine) -> None:
        if engine.state is State.SLEEPING:
            engine.has_dozed = True
            self._note(engine)
            self._post(FellAsleep(engine.model.name))

    def _exits(self, engine: Engine) -> None:
        name = engine.model.name
        del self.engines[name]
        self.book.hold(name, 0, self.now)
        self._post(Exited(name))
        self._post(Freed(name))

    # -- carrying out

    def _post(self, event: Event) -> None:
        for effect in self.policy.handle(event, self.now):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Grant(waiter, model):
                self._grant(waiter, self.engines[model])
            case Reject(waiter):
                self.book.reject(waiter, self.now)
                self._go_on(self.waiting.pop(waiter))
            case Start(model, placement):
                self._start(self.workload.by_name[model], placement)
            case Stop(model):
                self._stop(self.engines[model])
            case Sleep(model, level):
                self._sleep(self.engines[model], level)
            case Wake(model):
                self._wake(self.engines[model])

    def _grant(self, waiter: int, engine: Engine) -> None:
        pending = self.waiting.pop(waiter)
        self._require(engine.state is State.READY, f"a request was given to {engine.model.name}, which is not ready")
        engine.in_flight += 1
        engine.granted += 1
        self._require(engine.in_flight <= engine.model.max_parallel, f"{engine.model.name} was given too many requests")
        self._note(engine)
        loaded = [name for name, other in self.engines.items() if other.state is State.READY]
        self.book.grant(waiter, engine.model.name, loaded, self.now)
        self._later(pending.step.answer_s * engine.model.answer_factor, partial(self._answered, engine, pending))

    def _start(self, model: Model, placement: Placement) -> None:
        self._require(model.name not in self.engines, f"{model.name} was started twice")
        engine = self.engines[model.name] = Engine(model, placement, began_s=self.now)
        self._check_memory()
        self._check_loads()
        self.book.loads += 1
        self._later(model.load_s, partial(self._is_ready, engine))

    def _stop(self, engine: Engine) -> None:
        self._require(engine.in_flight == 0, f"{engine.model.name} was stopped while it answered")
        self._require(engine.state is not State.STOPPING, f"{engine.model.name} was stopped twice")
        self._count_eviction(engine)
        self.book.vain_loads += engine.granted == 0 and engine.state in (State.STARTING, State.READY)
        engine.state = State.STOPPING
        self._note(engine)
        self._later(engine.model.stop_s, partial(self._exits, engine))

    def _sleep(self, engine: Engine, level: int) -> None:
        self._require(engine.in_flight == 0, f"{engine.model.name} was put to sleep while it answered")
        cost = next(cost for cost in engine.model.sleep if cost.level == level)
        self._count_eviction(engine)
        engine.state, engine.asleep = State.SLEEPING, cost
        self.book.sleeps += 1
        self._later(engine.model.stop_s, partial(self._dozes, engine))

    def _wake(self, engine: Engine) -> None:
        self._require(engine.asleep is not None and engine.has_dozed, f"{engine.model.name} was woken awake")
        engine.state, engine.began_s, engine.has_dozed, engine.granted = State.STARTING, self.now, False, 0
        self._check_memory()
        self._check_loads()
        self._note(engine)
        self.book.wakes += 1
        wake_s = engine.asleep.wake_s if engine.asleep else 0
        self._later(wake_s, partial(self._is_ready, engine))

    def _count_eviction(self, engine: Engine) -> None:
        """An engine that goes while others wait was sent away; else nobody had wanted it for long."""
        self.book.swaps += engine.state is State.READY and bool(self.waiting)

    # -- what a machine allows

    def _note(self, engine: Engine) -> None:
        """Tell the book how much memory the engine holds for nothing."""
        is_idle = engine.state in (State.READY, State.SLEEPING) and engine.in_flight == 0
        self.book.hold(engine.model.name, sum(engine.held_mb().values()) if is_idle else 0, self.now)

    def _check_memory(self) -> None:
        used_mb = dict.fromkeys(self._capacity_mb, 0)
        for engine in self.engines.values():
            for device, mb in engine.held_mb().items():
                used_mb[device] += mb
        over = [device for device, mb in used_mb.items() if mb > self._capacity_mb[device]]
        self._require(not over, f"more than its memory was given out on {', '.join(over)}")

    def _check_loads(self) -> None:
        loading = [e for e in self.engines.values() if e.state is State.STARTING]
        busy = [share.device for engine in loading for share in engine.placement]
        self._require(len(busy) == len(set(busy)), "two models were loaded at a time on one GPU")

    def _require(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - an assertion with a message
        if not holds:
            raise SimulationError(f"at {self.now:.3f} s {otherwise}")
