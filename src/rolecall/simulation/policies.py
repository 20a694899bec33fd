"""The policies that are compared: the production scheduler, and what simpler proxies do, with the same two methods.

- ``rolecall``: `core.scheduler.Scheduler` itself.
- ``priority``: the same, but each role always takes its best model (role policy ``priority``).
- ``fifo-swap``: one queue in order of arrival. The head is served as soon as its model is loaded and has a free place,
  beside those in flight; until then all behind it wait. What is in its way is stopped when it is idle.
- ``lru-count``: a queue per model, requests for loaded models are served at once, at most N models are loaded, as with
  ``--models-max N`` of llama.cpp's router. For a further one the least recently used model that is idle is stopped; if
  none is idle, the request waits. N is the largest number of models that fit in any combination, unless it is given.

``fifo-swap`` and ``lru-count`` take the best model of a role whatever is loaded. They are given what rolecall is given:
they know how much memory each model takes, place it where the fewest others have to go, never cut an answer, load side
by side on different GPUs (``lru-count``), and unload after the same idle time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from rolecall.core.events import (
    Arrived,
    BecameReady,
    Configured,
    Effect,
    Event,
    Freed,
    Grant,
    Released,
    Spec,
    Start,
    Stop,
    Tick,
)
from rolecall.core.lifecycle import State
from rolecall.core.scheduler import Scheduler
from rolecall.core.selection import Candidate, Rules, Selection, select
from rolecall.core.vram import Holding, Ledger, Placement, placements
from rolecall.errors import ConfigurationError
from rolecall.simulation.workload import Workload
from rolecall.simulation.world import Policy


class PriorityScheduler(Scheduler):
    """The scheduler under the role policy ``priority``."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event, with rules under which each role takes its best model."""
        if isinstance(event, Configured):
            event = replace(event, rules=replace(event.rules, policy="priority", roles={}))
        return super().handle(event, now)


@dataclass(frozen=True, slots=True)
class Ask:
    """A waiting request and the model that was chosen for it."""

    waiter: int
    selection: Selection

    @property
    def model(self) -> str:
        """The model that it waits for."""
        return self.selection.best().name


@dataclass(slots=True)
class Engine:
    """One model's engine."""

    spec: Spec
    state: State = State.STOPPED
    in_flight: int = 0
    last_used: float = 0

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and answers nothing."""
        return self.state is State.READY and self.in_flight == 0

    @property
    def is_free(self) -> bool:
        """Whether it is loaded and could take one more request."""
        return self.state is State.READY and self.in_flight < self.spec.max_parallel


@dataclass
class Baseline(ABC):
    """What the simple policies share: who holds what, and who waits, oldest first."""

    max_loaded: int | None = None
    ledger: Ledger = field(default_factory=Ledger, init=False)
    engines: dict[str, Engine] = field(default_factory=dict, init=False)
    queue: dict[int, Ask] = field(default_factory=dict, init=False)
    _now: float = field(default=0, init=False)
    _limit_mb: int = field(default=0, init=False)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event at ``now`` (s) and return what has to be done, in order."""
        self._now = now
        effects = list(self._take_in(event))
        effects.extend(self.decide())
        return effects

    def wake_at(self) -> float | None:
        """Return when the next idle model is to be unloaded."""
        return min(
            (end for engine in self.engines.values() if (end := self._idle_end(engine)) is not None), default=None
        )

    @abstractmethod
    def decide(self) -> Iterator[Effect]:
        """Decide after every event."""

    def _take_in(self, event: Event) -> Iterator[Effect]:
        match event:
            case Configured():
                self._configure(event)
            case Arrived():
                candidates = [
                    Candidate(self.engines[n].spec.entry, self.engines[n].spec.footprint_mb) for n in event.names
                ]
                rules = Rules(self._limit_mb, policy="priority")
                self.queue[event.waiter] = Ask(event.waiter, select(event.demand, candidates, rules))
            case Released(model):
                self.engines[model].in_flight -= 1
                self.engines[model].last_used = self._now
            case BecameReady(model):
                self.engines[model].state = State.READY
                self.engines[model].last_used = self._now
            case Freed(model):
                self.engines[model].state = State.STOPPED
                self.ledger.linger(model)
                self.ledger.free(model)
            case Tick():
                wanted = {ask.model for ask in self.queue.values()}
                for engine in self.engines.values():
                    end = self._idle_end(engine)
                    if end is not None and self._now >= end and engine.spec.name not in wanted:
                        yield self.stop(engine)
            case _:
                pass

    def _configure(self, event: Configured) -> None:
        self._limit_mb = event.rules.limit_mb
        self.engines = {spec.name: Engine(spec) for spec in event.specs}
        self.ledger.configure(
            event.devices, event.budget_mb, min(event.max_models, self.max_loaded or event.max_models)
        )

    def _idle_end(self, engine: Engine) -> float | None:
        idle_s = engine.spec.idle_unload_s
        return engine.last_used + idle_s if engine.is_idle and idle_s > 0 and not engine.spec.entry.pinned else None

    # -- what they can do

    def grant(self, ask: Ask) -> Grant:
        """Let a request through."""
        del self.queue[ask.waiter]
        engine = self.engines[ask.model]
        engine.in_flight += 1
        engine.last_used = self._now
        return Grant(ask.waiter, ask.model, ask.selection)

    def stop(self, engine: Engine) -> Stop:
        """Stop an idle engine."""
        engine.state = State.STOPPING
        return Stop(engine.spec.name)

    def come(self, engine: Engine) -> Iterator[Effect]:
        """Start a model, or stop what is in its way: the fewest, and of those the least recently used."""
        loading = {
            d for e in self.engines.values() if e.state is State.STARTING for d in self.ledger.held_on(e.spec.name)
        }
        options = [(way, option) for option in self._options(engine) if (way := self._way(option)) is not None]
        options = [(way, option) for way, option in options if loading.isdisjoint(s.device for s in option)]
        if not options:
            return
        way, option = min(options, key=lambda pair: (len(pair[0]), [e.last_used for e in pair[0]]))
        for victim in way:
            yield self.stop(victim)
        if not self.ledger.lack(option):
            self.ledger.reserve(engine.spec.name, option)
            engine.state = State.STARTING
            yield Start(engine.spec.name, option)

    def _options(self, engine: Engine) -> list[Placement]:
        return placements(self.ledger, engine.spec.footprint_mb, engine.spec.spread, engine.spec.devices)

    def _way(self, placement: Placement) -> list[Engine] | None:
        """Return the idle engines that have to go for the placement, least recently used first; None: too few."""
        going = [Holding(e.spec.name, 0) for e in self.engines.values() if e.state is State.STOPPING]
        idle = [e for e in self.engines.values() if e.is_idle and not e.spec.entry.pinned]
        victims: list[Engine] = []
        for engine in sorted(idle, key=lambda e: e.last_used):
            lack = self.ledger.lack(placement, going)
            if not lack:
                break
            if lack.places > 0 or any(lack.by_device.get(d, 0) > 0 for d in self.ledger.held_on(engine.spec.name)):
                victims.append(engine)
                going.append(Holding(engine.spec.name, 0))
        return None if self.ledger.lack(placement, going) else victims


class FifoSwap(Baseline):
    """One queue in order of arrival, swapping as requests come."""

    def decide(self) -> Iterator[Effect]:
        """Serve the head of the queue, or clear its way."""
        while self.queue:
            ask = next(iter(self.queue.values()))
            engine = self.engines[ask.model]
            if not engine.is_free:
                if engine.state is State.STOPPED:
                    yield from self.come(engine)
                return
            yield self.grant(ask)


class LruCount(Baseline):
    """At most ``max_loaded`` models; the least recently used that is idle goes for a new one."""

    def decide(self) -> Iterator[Effect]:
        """Serve all that can be served, then load what the oldest waiters miss."""
        for ask in list(self.queue.values()):
            if self.engines[ask.model].is_free:
                yield self.grant(ask)
        wanted = dict.fromkeys(ask.model for ask in self.queue.values())
        for name in wanted:
            if self.engines[name].state is State.STOPPED:
                yield from self.come(self.engines[name])


def fitting_count(workload: Workload) -> int:
    """Return how many models, whichever they are, fit at once: the N that an operator without a ledger has to set.

    The pinned ones and the largest of the others are tried, placed one after the other on the emptiest GPU. At least
    one beside those that are pinned.
    """
    models = sorted(workload.models, key=lambda model: (not model.pinned, -model.vram_mb))
    sizes_mb, least = [model.vram_mb for model in models], 1 + sum(model.pinned for model in models)
    return max(
        (n for n in range(least, len(models) + 1) if _pack(sizes_mb[:n], workload.machine.gpus_mb)), default=least
    )


def _pack(sizes_mb: Iterable[int], gpus_mb: Iterable[int]) -> bool:
    free_mb = list(gpus_mb)
    for mb in sizes_mb:
        emptiest = max(range(len(free_mb)), key=free_mb.__getitem__)
        free_mb[emptiest] -= mb
        if free_mb[emptiest] < 0:
            return False
    return True


POLICIES = ("rolecall", "priority", "fifo-swap", "lru-count")
_ENDLESS = 1_000_000
"""The other policies turn nobody away, so rolecall does not either."""
DEFAULT_POLICIES = ("rolecall", "fifo-swap", "lru-count")


def make_policy(name: str, workload: Workload, models_max: int | None = None) -> Policy:
    """Return a new policy; raises ``ConfigurationError`` for a name that is none."""
    match name:
        case "rolecall":
            return Scheduler(max_overtake_s=workload.max_overtake_s, max_queue=_ENDLESS)
        case "priority":
            return PriorityScheduler(max_overtake_s=workload.max_overtake_s, max_queue=_ENDLESS)
        case "fifo-swap":
            return FifoSwap()
        case "lru-count":
            return LruCount(models_max or fitting_count(workload))
        case _:
            raise ConfigurationError(f"--policy: {name!r} is none; allowed are {', '.join(POLICIES)}")
