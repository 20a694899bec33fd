"""Who is served, what is started and what has to go: events in, effects out; no clock, no I/O.

The policy, in the order in which ``_decide`` applies it:

1. A waiter whose model failed a moment ago, or has no room beside what stays, takes the next candidate of its role, or
   is told why there is none.
2. The oldest waiter for a model that is not there is overtaken for no longer than ``max_overtake_s``, counted from its
   arrival. From then on its model claims a place: the models in its way take no newer request and drain; but one that
   was loaded a moment ago serves for a quarter of its load time, unless the waiter has been passed for
   ``max_overtake_s`` since the first request that passed it. Answers in flight are never cut for it, however long they
   take.
3. A waiter whose model is ready and has a free place is granted at once, in order of arrival: requests for the loaded
   model are collated before a swap.
4. Whoever still waits when the queue is full is turned away, the newest first.
5. One load at a time on each device: first the claims, then the models with the most waiters per second of load. What
   is idle makes room, the cheapest to bring back first: asleep if it can sleep, else stopped; never a pinned model,
   never one with a request in flight, and not in the moment between two requests of the same client.
6. When nobody waits for a load, the rest of a group in use is loaded into what is free.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

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
    Group,
    Measured,
    Observed,
    Reject,
    Released,
    ShutdownRequested,
    Sleep,
    SleepCost,
    Start,
    Stop,
    UnloadRequested,
    Wake,
)
from rolecall.core.lifecycle import State, Step, advance
from rolecall.core.selection import Candidate, Demand, Rules, Selection, select
from rolecall.core.slot import Claim, ModelStatus, Slot, Waiter, status_rows
from rolecall.core.vram import Holding, Ledger, Placement, placements, plan_eviction
from rolecall.errors import RolecallError, ShuttingDown, StartFailed, TooManyRequests, Unavailable

FOREIGN_PATIENCE_S = 10.0
"""How long a request waits for memory that other programs hold before it is told so."""

STALE_S = 60.0
"""A model that was idle for this long makes room for the rest of a group in use."""

_FEW_DEVICES = 8

_MORE = 1.2
"""What a model is given that ran out of memory and was not measured since, times what was not enough."""

RESIDENCY = 0.25
"""Part of its load time for which a model that has just been loaded serves, whoever is overdue."""

SLEEP_ROUNDS = 6
"""A sleeping model is stopped after this many times its ``idle_unload_s``."""


@dataclass
class Scheduler:
    """The only owner of slots, waiters and reservations; ``handle`` is its one way in."""

    max_overtake_s: float = 20
    max_queue: int = 1000
    drain_limit_s: float = 300
    linger_share: float = 0.05
    """Part of its load time for which an idle model is kept for the next request of a client that comes back."""
    rules: Rules = field(default_factory=lambda: Rules(limit_mb=0), init=False)
    ledger: Ledger = field(default_factory=Ledger, init=False)
    _slots: dict[str, Slot] = field(default_factory=dict, init=False)
    _waiters: dict[int, Waiter] = field(default_factory=dict, init=False)
    _profiles: Mapping[str, Rules] = field(default_factory=dict, init=False)
    _groups: tuple[Group, ...] = field(default=(), init=False)
    _sleep_mb: int = field(default=0, init=False)
    _closing: bool = field(default=False, init=False)
    _has_pinned: bool = field(default=False, init=False)
    _now: float = field(default=0, init=False)
    _chosen: dict[tuple[Demand, tuple[str, ...]], Selection] = field(default_factory=dict, init=False)
    """Selections of the present event: many waiters ask the same."""
    _settled: dict[tuple[Demand, tuple[str, ...]], Selection] = field(default_factory=dict, init=False)
    """Selections that hold until something else happens than that a loaded model serves."""
    _deadline: float | None = field(default=None, init=False)
    _knows_deadline: bool = field(default=False, init=False)
    _places: dict[tuple[int | None, tuple[int, ...], tuple[str, ...]], list[Placement]] = field(
        default_factory=dict, init=False
    )
    """Where models of a size may lie, until the devices change."""

    def __repr__(self) -> str:
        models = ", ".join(f"{s.name} {s.state.value} {s.in_flight} active" for s in self._slots.values())
        return f"<Scheduler [{models}] {len(self._waiters)} queued>"

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event at ``now`` (s, monotonic) and return what has to be done, in order."""
        if isinstance(event, Arrived) and (grant := self.at_once(event, now)) is not None:
            return [grant]
        self._now = now
        if isinstance(event, Released) and not self._is_busy and self._release_at_once(event):
            return []
        self._chosen.clear()
        self._settled.clear()
        self._knows_deadline = False
        self.ledger.staying = self._staying()
        effects = list(self._take_in(event))
        effects.extend(self._decide())
        self.ledger.promised.clear()
        if isinstance(event, Arrived) and len(effects) == 1 and isinstance(effects[0], Grant):
            self._remember(event, effects[0].selection)
        return effects

    # -- the traffic of loaded models while nobody waits: in short what the events and decisions below come to

    @property
    def _is_busy(self) -> bool:
        return bool(self._waiters or self._groups or self._closing)

    def at_once(self, event: Arrived, now: float) -> Grant | None:
        """Return what ``handle`` would, if that is a grant and nothing else; None, and nothing has happened, if not."""
        if self._is_busy:
            return None
        self._now = now
        return self._serve_at_once(event)

    def _serve_at_once(self, event: Arrived) -> Grant | None:
        """Grant what a model was chosen for before, if it has a free place; None if more has to be thought about."""
        selection = self._settled.get((event.demand, event.names))
        if selection is None:
            return None
        slot = self._slots[selection.ranked[0].name]
        if slot.in_flight >= slot.spec.max_parallel:
            return None
        self._want(slot)
        slot.in_flight += 1
        return Grant(event.waiter, slot.name, selection)

    def _release_at_once(self, event: Released) -> bool:
        slot = self._slots.get(event.model)
        if slot is None or slot.state is not State.READY:
            return False
        slot.in_flight -= 1
        slot.idle_since = slot.last_used = self._now
        if self._knows_deadline and (end := self._idle_end(slot)) is not None:
            self._deadline = end if self._deadline is None else min(self._deadline, end)
        return True

    def _remember(self, event: Arrived, selection: Selection) -> None:
        """Keep a selection that no lapse of time can change: none of its models is backing off or short of room."""
        slots = [self._slots[name] for name in event.names if name in self._slots]
        if all(slot.state is not State.FAILED and slot.blocked_since is None for slot in slots):
            self._settled[event.demand, event.names] = selection

    # -- what the supervisor and the selection endpoint look at

    def candidates(self, names: Iterable[str]) -> list[Candidate]:
        """Return what is known now about the models ``names``."""
        return [self._candidate(self._slots[name]) for name in names if name in self._slots]

    def state(self, name: str) -> State:
        """Return the state of a model; STOPPED for one that was never heard of."""
        slot = self._slots.get(name)
        return slot.state if slot else State.STOPPED

    def waiting(self) -> int:
        """Return the number of requests in the queue."""
        return len(self._waiters)

    def waits_for(self, waiter: int) -> tuple[str, int] | None:
        """Return the model that a waiter waits for, and how many wait for that before it; None if it waits no more."""
        if (waiting := self._waiters.get(waiter)) is None:
            return None
        return waiting.model, list(self._slots[waiting.model].queue).index(waiter)

    def load_s(self, name: str) -> float:
        """Return how long a model's start, or its waking, is expected to take."""
        return self._slots[name].comes_back_in_s

    def residual_mb(self, name: str) -> int:
        """Return what a model that falls asleep keeps on each of its devices."""
        slot = self._slots[name]
        return slot.asleep.residual_mb if slot.asleep else 0

    def status(self, now: float) -> list[ModelStatus]:
        """Return one row per model of the registry, by name."""
        return status_rows(self._slots.values(), {name: self.ledger.held_mb(name) for name in self._slots}, now)

    def wake_at(self) -> float | None:
        """Return when time alone will change something, so that a ``Tick`` is due; None if it will not.

        It may be too early where models have served since: a ``Tick`` then changes nothing.
        """
        if not self._knows_deadline:
            self._deadline, self._knows_deadline = min(self._deadlines(), default=None), True
        return self._deadline

    # -- events

    def _take_in(self, event: Event) -> Iterator[Effect]:  # noqa: C901, PLR0912 - a table of events
        if getattr(event, "model", None) not in {None, *self._slots}:  # a late word about what the registry has not
            return
        match event:
            case Arrived():
                yield from self._arrived(event)
            case Cancelled():
                self._forget(event.waiter)
            case Released():
                yield from self._released(self._slots[event.model])
            case BecameReady():
                yield from self._became_ready(self._slots[event.model], event.load_s)
            case Measured():
                self._measured(self._slots[event.model], event)
            case FellAsleep():
                self._fell_asleep(self._slots[event.model])
            case Exited():
                self._exited(self._slots[event.model], event)
            case Freed():
                self.ledger.free(event.model)
            case Observed():
                self.ledger.foreign_mb = event.foreign_mb
            case Adopted():
                self._adopted(self._slots[event.model], event.placement)
            case UnloadRequested():
                self._slots[event.model].is_unwanted = True
                yield from self._unload(self._slots[event.model])
            case Configured():
                yield from self._configured(event)
            case ShutdownRequested():
                self._closing = True
                yield from self._reject_all()
            case _:  # Tick
                yield from self._tick()

    def _arrived(self, event: Arrived) -> Iterator[Effect]:
        if self._closing:
            yield Reject(event.waiter, ShuttingDown())
            return
        for name in event.names:
            if name in self._slots and not self._slots[name].queue:
                self._slots[name].blocked_since = None  # patience begins anew with the first who waits
        try:
            selection = self._choose(event.demand, event.names)
        except RolecallError as error:
            yield Reject(event.waiter, error)
            return
        waiter = Waiter(event.waiter, event.demand, event.names, self._now, selection)
        slot = self._slots[waiter.model]
        self._want(slot)
        self._waiters[waiter.id] = slot.queue[waiter.id] = waiter

    def _want(self, slot: Slot) -> None:
        slot.is_unwanted = False
        if slot.is_idle and self._now - slot.idle_since <= slot.linger_s(self.linger_share):
            slot.remember_return(came=True)
        for member in self._together(slot):
            member.use(self._now)

    def _forget(self, waiter: int) -> None:
        if (gone := self._waiters.pop(waiter, None)) is not None:
            del self._slots[gone.model].queue[waiter]

    def _released(self, slot: Slot) -> Iterator[Effect]:
        slot.in_flight -= 1
        slot.idle_since = self._now
        for member in self._together(slot):
            member.last_used = self._now
        if slot.state is State.STOPPING and slot.in_flight == 0 and slot.stop_by is not None:
            yield self._stop_now(slot)

    def _became_ready(self, slot: Slot, load_s: float | None) -> Iterator[Effect]:
        if slot.state is not State.STARTING:  # it was asked to stop while it was loading
            return
        slot.state = advance(slot.state, Step.BECOME_READY)
        if load_s is not None:
            slot.learn_time(load_s)
        slot.asleep = slot.claim = None
        slot.last_used = slot.ready_since = slot.idle_since = self._now
        slot.error = ""
        if slot.starts_alone:  # and nobody measures it: it needs somewhat more than what was not enough
            part_mb = math.ceil(_MORE * slot.ran_out_mb / max(1, len(slot.placement)))
            self._hold(slot, {share.device: min(share.mb, part_mb) for share in slot.placement}, None)
        # Who waits for another model of a role may take this one, if it is good enough.
        others = [w for w in self._waiters.values() if w.demand.role and slot.name in w.names and w.model != slot.name]
        yield from self._rebind([waiter for waiter in others if self._slots[waiter.model].is_cold])

    def _measured(self, slot: Slot, event: Measured) -> None:
        is_there = slot.state in (State.STARTING, State.READY, State.STOPPING)
        if is_there and any(event.held_mb.values()):
            self._hold(slot, event.held_mb, event.footprint_mb)

    def _hold(self, slot: Slot, held_mb: Mapping[str, int], footprint_mb: int | None) -> None:
        """Take in what a model holds, and what its next start gets: never more than there is, or it had none.

        Earlier loads may have come to hold more than this one does yet: that much stays reserved.
        """
        part_mb = -(-(footprint_mb or 0) // max(1, len(held_mb)))
        kept_mb = {device: max(mb, part_mb) for device, mb in held_mb.items()}
        self.ledger.correct(slot.name, kept_mb)
        slot.placement = tuple(replace(share, mb=kept_mb.get(share.device, share.mb)) for share in slot.placement)
        slot.measured_mb = min(footprint_mb or sum(held_mb.values()), self.ledger.budget_mb)
        slot.starts_alone = False

    def _fell_asleep(self, slot: Slot) -> None:
        if slot.state is State.SLEEPING and slot.asleep is not None:  # else it is to stop by now
            slot.is_settled = True
            self.ledger.doze(slot.name, slot.asleep.residual_mb)

    def _exited(self, slot: Slot, event: Exited) -> None:
        woke_badly = slot.state is State.STARTING and slot.asleep is not None
        crashed = slot.state in (State.READY, State.SLEEPING) or woke_badly
        slot.state = advance(slot.state, Step.EXIT)
        slot.stop_by = slot.asleep = None
        slot.sleeps_badly |= woke_badly
        self.ledger.linger(slot.name)
        if slot.state is not State.FAILED:
            slot.failures = 0
        elif event.out_of_memory and not woke_badly and self._has_more_to_give(slot):
            # It needs more than was thought: next it gets its devices for itself, or more of them, and is measured.
            slot.ran_out_mb = sum(share.mb for share in slot.placement)
            slot.ran_out_devices = len(slot.placement) + slot.starts_alone
            slot.starts_alone, slot.measured_mb = True, None
            if crashed:
                slot.fail(event.error, self._now, crashed=True)
            else:
                slot.error, slot.has_crashed, slot.retry_at = event.error, False, self._now
        else:
            slot.fail(event.error, self._now, crashed=crashed)

    def _has_more_to_give(self, slot: Slot) -> bool:
        """Whether a model that ran out of memory can be given a device of its own, or more devices."""
        if not slot.spec.managed:
            return False
        more = range(len(slot.placement) + 1, len(self.ledger.devices) + 1)
        return not slot.starts_alone or any(count in more for count in slot.spec.spread)

    def _adopted(self, slot: Slot, placement: Placement) -> None:
        for step in (Step.START, Step.BECOME_READY):
            slot.state = advance(slot.state, step)
        slot.placement = placement
        slot.last_used = slot.ready_since = slot.idle_since = self._now
        if placement:
            self.ledger.correct(slot.name, {share.device: share.mb for share in placement})

    def _unload(self, slot: Slot) -> Iterator[Effect]:
        if slot.state in (State.STOPPED, State.STOPPING):
            return
        was = slot.state
        slot.state = advance(slot.state, Step.STOP)
        slot.error = ""
        if was is State.FAILED:
            slot.failures = 0
        elif slot.in_flight and was is State.READY:
            slot.stop_by = self._now + self.drain_limit_s
        else:
            yield self._stop_now(slot)

    def _configured(self, event: Configured) -> Iterator[Effect]:
        self.rules, self._groups, self._sleep_mb = event.rules, event.groups, event.sleep_mb
        self._profiles = event.profiles
        self.ledger.configure(event.devices, event.budget_mb, event.max_models)
        self._places.clear()
        specs = {spec.name: spec for spec in event.specs}
        for name, slot in list(self._slots.items()):
            spec = specs.pop(name, None)
            slot.removed = spec is None
            new = spec or replace(slot.spec, unavailable="it was removed from the registry")
            stale = slot.removed or not new.starts_like(slot.spec) or not self._can_wake(slot)
            slot.spec = new
            if stale:
                slot.measured_mb, slot.starts_alone, slot.sleeps_badly = None, False, False
                yield from self._unload(slot)
            slot.claim = None  # who was to go may be somebody else now
            if slot.removed and slot.state is State.STOPPED and not slot.queue and not self.ledger.lingers(name):
                del self._slots[name]
        self._slots.update((name, Slot(spec, spec.load_s)) for name, spec in specs.items())
        self._has_pinned = any(slot.spec.entry.pinned for slot in self._slots.values())
        yield from self._rebind(self._waiters.values())

    def _can_wake(self, slot: Slot) -> bool:
        """Whether a sleeping model would fit where it lies if it were alone; the devices may be smaller by now."""
        bare = Ledger(self.ledger.devices.values(), self.ledger.budget_mb, self.ledger.max_models)
        return slot.state is not State.SLEEPING or not bare.lack(slot.placement)

    def _tick(self) -> Iterator[Effect]:
        for slot in list(self._slots.values()):
            if slot.stop_by is not None and self._now >= slot.stop_by:
                yield self._stop_now(slot)
            elif (end := self._idle_end(slot)) is not None and self._now >= end:
                cost = self._sleep_cost(slot) if slot.state is State.READY else None
                yield from self._make_go(slot, cost)

    def _idle_end(self, slot: Slot) -> float | None:
        """Return when a model is unloaded, or a sleeping one stopped, because nobody wants it."""
        idle_s = slot.spec.idle_unload_s
        if idle_s <= 0 or slot.queue or not slot.can_go:
            return None
        if slot.is_idle:
            return slot.last_used + idle_s
        is_asleep = slot.state is State.SLEEPING and slot.is_settled
        return slot.last_used + SLEEP_ROUNDS * idle_s if is_asleep else None

    def _deadlines(self) -> Iterator[float]:
        is_missing = False
        for slot in self._slots.values():
            if slot.stop_by is not None:
                yield slot.stop_by
            if (end := self._idle_end(slot)) is not None:
                yield end
            if slot.is_cold and (oldest := slot.oldest) is not None:
                is_missing = True
                if (overdue := oldest.arrived + self.max_overtake_s) > self._now:
                    yield overdue
                if slot.blocked_since is not None:
                    yield slot.blocked_since + FOREIGN_PATIENCE_S
        if is_missing:
            yield from (moment for moment in self._ends_of_stay() if moment > self._now)

    def _ends_of_stay(self) -> Iterator[float]:
        """Yield when models that are loaded may have to go although they may stay now."""
        for slot in self._slots.values():
            if slot.is_idle:
                yield slot.idle_since + slot.linger_s(self.linger_share)
            if slot.state is State.READY:
                yield slot.ready_since + RESIDENCY * slot.load_s
            elif slot.is_cold and (oldest := slot.oldest) is not None and oldest.passed_since is not None:
                yield oldest.passed_since + self.max_overtake_s

    # -- decisions

    def _decide(self) -> Iterator[Effect]:
        """Decide after every event; the numbers are those of the module's docstring."""
        # 1. nobody waits for a model that cannot come
        for slot in self._slots.values():
            if slot.queue and slot.is_settled and not self._can_wake(slot):
                yield from self._unload(slot)  # it is larger than was thought: it starts anew, elsewhere
        barred = {slot.name for slot in self._slots.values() if slot.queue and self._is_barred(slot)}
        if barred:
            yield from self._rebind([w for w in self._waiters.values() if w.model in barred])
        missing = [slot for slot in self._slots.values() if slot.queue and slot.is_cold]
        # 2. who was overtaken too long has its place cleared
        overdue = self._claim(missing)
        # 3. ready models serve
        yield from self._grant(overdue)
        # 4. no longer queue than allowed
        yield from self._turn_away()
        # 5. what is missing is loaded
        missing = [slot for slot in missing if slot.queue]
        yield from self._load(missing, overdue)
        # 6. what belongs together comes together
        if self._groups and not missing and not self._closing:
            yield from self._complete_groups()

    def _claim(self, missing: Iterable[Slot]) -> list[Slot]:
        """Return the models whose oldest waiter was overtaken too long, oldest first, and renew all claims.

        A claim is kept while it still holds: chosen anew after every event, two loaded models would take turns in
        draining for ever.
        """
        waiting = [(w.arrived, w.id, slot) for slot in missing if slot.spec.managed and (w := slot.oldest) is not None]
        overdue = [slot for arrived, _, slot in sorted(waiting) if self._now - arrived >= self.max_overtake_s]
        claimed: set[str] = set()
        # After the overdue ones, those for whom somebody was sent away already: nobody else takes that room.
        for slot in (*overdue, *(s for s in self._slots.values() if s.claim is not None and s not in overdue)):
            if not slot.queue or not self._holds(slot.claim, claimed, slot):
                is_open = slot in overdue and not self.ledger.devices.keys() <= claimed
                fit = self._best_fit(slot, self._leaders(slot), claimed) if is_open else None
                slot.claim = None if fit is None else Claim(*fit)
            if slot.claim is not None:
                claimed.update(_devices(slot.claim.placement))
                self.ledger.promised.append(slot.claim.placement)
        self.ledger.promised.clear()
        return overdue

    def _holds(self, claim: Claim | None, claimed: set[str], slot: Slot) -> bool:
        if claim is None or not claimed.isdisjoint(_devices(claim.placement)):
            return False
        still = [v for v in claim.victims if self._slots[v.name].state in (State.READY, State.SLEEPING)]
        return not self.ledger.lack(claim.placement, [*self._leaving(slot), *still])

    def _leaders(self, slot: Slot) -> list[list[Holding]]:
        """Return who may have to make way for an overdue waiter: all that can go, idle or not."""
        able = [s for s in self._slots.values() if s.can_go and s is not slot]
        awake = [s for s in able if s.state is State.READY]
        asleep = [s for s in able if s.state is State.SLEEPING and s.is_settled]
        return self._ways(awake, asleep)

    def _grant(self, overdue: list[Slot]) -> Iterator[Effect]:
        no_newer: dict[str, float] = {}
        for slot in overdue:
            if slot.claim is not None and (oldest := slot.oldest) is not None:
                for victim in slot.claim.victims:
                    if not self._stays_a_while(self._slots[victim.name], oldest):
                        no_newer.setdefault(victim.name, oldest.arrived)
        for slot in self._slots.values():
            if slot.queue and slot.state is State.READY:
                yield from self._serve(slot, no_newer.get(slot.name, float("inf")))

    def _serve(self, slot: Slot, no_newer_than: float) -> Iterator[Effect]:
        for waiter in list(slot.queue.values()):
            if slot.in_flight >= slot.spec.max_parallel or waiter.arrived > no_newer_than:
                return
            slot.in_flight += 1
            self._forget(waiter.id)
            self._note_overtaken(slot, waiter)
            yield Grant(waiter.id, slot.name, waiter.selection)

    def _stays_a_while(self, victim: Slot, overdue: Waiter) -> bool:
        """Whether a model serves on although an overdue waiter needs its place: it was loaded a moment ago.

        Without it, models that take longer to load than anybody may be overtaken would serve one request a load. It
        ends when the waiter was overtaken for as long as it may be, counted from the first request that passed it.
        """
        if victim.state is not State.READY or self._now >= victim.ready_since + RESIDENCY * victim.load_s:
            return False
        return overdue.passed_since is None or self._now < overdue.passed_since + self.max_overtake_s

    def _note_overtaken(self, slot: Slot, granted: Waiter) -> None:
        """Note whom a request has just passed: older ones whose model could lie where the granted one's does."""
        devices = _devices(slot.placement)
        for other in self._slots.values():
            if not other.is_cold or (oldest := other.oldest) is None or oldest.arrived > granted.arrived:
                continue
            if any(not devices.isdisjoint(_devices(option)) for option in self._options(other)):
                other.note_passed(granted.arrived, self._now)

    def _turn_away(self) -> Iterator[Effect]:
        for waiter in list(self._waiters.values())[self.max_queue :] if len(self._waiters) > self.max_queue else ():
            slot = self._slots[waiter.model]
            self._forget(waiter.id)
            full = f"The queue is full: {self.max_queue} requests are waiting."
            yield Reject(waiter.id, TooManyRequests(full, retry_after_s=max(5, slot.comes_back_in_s)))

    def _load(self, missing: list[Slot], overdue: list[Slot]) -> Iterator[Effect]:
        for slot in missing:
            if not slot.spec.managed:  # it takes no room and no turn
                yield self._start(slot, ())
        taken = self._loading_on()
        yield from self._load_overdue(overdue, taken)
        others = [slot for slot in missing if slot.spec.managed and slot.is_cold and slot not in overdue]
        yield from self._load_others(others, taken)

    def _loading_on(self) -> set[str]:
        """Return the devices on which something loads or wakes."""
        return {share.device for s in self._slots.values() if s.state is State.STARTING for share in s.placement}

    def _load_overdue(self, overdue: list[Slot], taken: set[str]) -> Iterator[Effect]:
        for slot in overdue:
            if slot.queue and slot.claim is not None:
                for victim in slot.claim.victims:
                    if self._goes_now(self._slots[victim.name], slot.queue):
                        yield from self._send_away(victim)
                yield from self._break_off(slot, slot.claim.placement)
                yield from self._come(slot, slot.claim.placement, taken)

    def _goes_now(self, victim: Slot, overdue: Mapping[int, Waiter]) -> bool:
        oldest = next(iter(overdue.values()))
        if victim.is_idle and self._stays_a_while(victim, oldest):
            return self._is_rested(victim)
        return victim.is_idle or victim.state is State.SLEEPING

    def _is_rested(self, slot: Slot) -> bool:
        """Whether an idle model is no longer kept for the next request of its client."""
        return self._now >= slot.idle_since + slot.linger_s(self.linger_share)

    def _load_others(self, others: list[Slot], taken: set[str]) -> Iterator[Effect]:
        reach_mb = self._reach_mb()
        for slot in self._in_turn(others):
            if self.ledger.devices.keys() <= taken:
                for placement in self._options(slot)[:1]:
                    yield from self._break_off(slot, placement)
                return
            if slot.claim is not None:
                yield from self._come(slot, slot.claim.placement, taken)
            elif self._is_in_reach(slot, reach_mb):
                yield from self._make_room(slot, taken)

    def _reach_mb(self) -> dict[str, int]:
        """Return the most that one model could be given of each device now, if all went that is idle.

        It only falls while a decision is made. Most waiters of a long queue need no closer look.
        """
        reach_mb = {device: self.ledger.open_mb(device) for device in self.ledger.devices}
        for slot in self._slots.values():
            is_wanted = slot.queue or slot.in_flight or not slot.can_go
            if is_wanted and slot.state in (State.READY, State.STARTING):
                for device, mb in self.ledger.held_on(slot.name).items():
                    reach_mb[device] = reach_mb.get(device, 0) - mb
        return reach_mb

    def _is_in_reach(self, slot: Slot, reach_mb: Mapping[str, int]) -> bool:
        return any(all(share.mb <= reach_mb[share.device] for share in option) for option in self._options(slot))

    def _in_turn(self, missing: Iterable[Slot]) -> list[Slot]:
        """Return the models in the order in which they are loaded.

        Before the first in turn come those whose oldest waiter is older than its own and will be overdue before it is
        ready: it would have to go again at once, with its waiters unserved.
        """
        order = sorted(missing, key=self._turn)
        if not order or order[0].claim is not None or (front := order[0].oldest) is None:
            return order
        older = [(w.arrived, w.id) for slot in order if (w := slot.oldest) is not None and w.arrived < front.arrived]
        soon = self._now + order[0].comes_back_in_s - self.max_overtake_s
        first = [self._slots[self._waiters[number].model] for arrived, number in sorted(older) if arrived <= soon]
        return [*first, *(slot for slot in order if slot not in first)]

    def _turn(self, slot: Slot) -> tuple[bool, float, float]:
        """Return what the next load is chosen by: room made already, most waiting per second of load, first come."""
        per_second = len(slot.queue) / max(slot.comes_back_in_s, 0.001)
        return slot.claim is None, -per_second, slot.oldest.arrived if slot.oldest else 0.0

    def _make_room(self, slot: Slot, taken: set[str]) -> Iterator[Effect]:
        """Start the model if it has room on a device where nothing loads; else send away what is idle for it."""
        fit = self._best_fit(slot, self._idle(slot), taken)
        if fit is not None:
            placement, victims = fit
            for victim in victims:
                self._slots[victim.name].remember_return(came=False)
                yield from self._send_away(victim)
            slot.claim = Claim(placement, victims) if victims else None
            yield from self._come(slot, placement, taken)

    def _come(self, slot: Slot, placement: Placement, taken: set[str]) -> Iterator[Effect]:
        """Start or wake the model where it is to lie, or keep others from that place until it can."""
        free = taken.isdisjoint(_devices(placement))
        taken.update(_devices(placement))
        is_awaited = self.ledger.lingers(slot.name) or (slot.state is State.SLEEPING and not slot.is_settled)
        if not free or is_awaited or self.ledger.lack(placement, self._itself(slot)):
            self.ledger.promised.append(placement)
        elif slot.state is State.SLEEPING:
            self.ledger.rouse(slot.name, placement)
            slot.state = advance(slot.state, Step.START)
            yield Wake(slot.name)
        else:
            yield self._start(slot, placement)

    def _break_off(self, slot: Slot, placement: Placement) -> Iterator[Effect]:
        """Stop a load on these devices that nobody waits for any more, if it keeps the model from its place."""
        devices = _devices(placement)
        for other in list(self._slots.values()):
            is_unwanted = other.state is State.STARTING and not other.queue and other.can_go and other is not slot
            if is_unwanted and not devices.isdisjoint(_devices(other.placement)):
                yield from self._unload(other)

    def _complete_groups(self) -> Iterator[Effect]:
        taken = self._loading_on()
        for group in self._groups:
            members = [self._slots[name] for name in group.models if name in self._slots]
            if not any(s.state is State.READY and s.likelihood(self._now) > 0 for s in members):
                continue
            is_loading = any(s.state is State.STARTING for s in members)
            for slot in filter(self._may_follow, members):
                if group.startup == "serial" and is_loading:
                    break
                stale = [s for s in self._slots.values() if s.is_idle and s.can_go and not self._is_in_group(s)]
                stale = [s for s in stale if self._now - s.last_used >= STALE_S]
                fit = self._best_fit(slot, self._ways(stale, ()), taken)
                if fit is not None:
                    for victim in fit[1]:
                        yield from self._send_away(victim)
                    yield from self._come(slot, fit[0], taken)
                    is_loading = True

    def _may_follow(self, slot: Slot) -> bool:
        """Whether a model of a group in use is to be loaded before anybody asks for it."""
        if slot.state not in (State.STOPPED, State.SLEEPING) or slot.is_unwanted or slot.removed:
            return False
        idle_s = slot.spec.idle_unload_s
        is_recent = idle_s <= 0 or self._now - slot.last_used < idle_s
        return slot.spec.managed and slot.spec.unavailable is None and not slot.failures and is_recent

    # -- room

    def _options(self, slot: Slot) -> list[Placement]:
        """Return where the model may lie; a sleeping one stays on its devices."""
        if slot.state is State.SLEEPING:
            return [slot.placement]
        key = slot.need_mb, slot.spec.spread, slot.spec.devices
        if slot.need_mb is None:
            spread = [count for count in slot.spec.spread if count >= slot.ran_out_devices] or slot.spec.spread
            return placements(self.ledger, None, spread, slot.spec.devices, slot.ran_out_mb)
        if len(self.ledger.devices) > _FEW_DEVICES:  # the choice depends on what is loaded
            return placements(self.ledger, *key)
        if key not in self._places:
            self._places[key] = placements(self.ledger, *key)
        return self._places[key]

    def _best_fit(
        self, slot: Slot, ways: Iterable[list[Holding]], taken: Collection[str]
    ) -> tuple[Placement, tuple[Holding, ...]] | None:
        """Return where the model costs least to place, and who goes for it.

        The cheapest eviction, then the tightest fit, so that large gaps stay for large models; then the first device.
        The ways of making room are tried one after the other.
        """
        options = [option for option in self._options(slot) if _devices(option).isdisjoint(taken)]
        leaving = self._leaving(slot)
        for candidates in ways:
            plans = [(option, plan_eviction(self.ledger, option, candidates, leaving)) for option in options]
            fits = [(option, tuple(plan)) for option, plan in plans if plan is not None]
            if fits:
                return min(fits, key=lambda fit: (sum(h.cost for h in fit[1]), len(fit[1]), self._left_mb(fit[0])))
        return None

    def _left_mb(self, placement: Placement) -> tuple[int, int]:
        left_mb = sum(self.ledger.room_mb(share.device) - share.mb for share in placement)
        return left_mb, sum(self.ledger.devices[share.device].index for share in placement)

    def _idle(self, slot: Slot) -> list[list[Holding]]:
        """Return what may make room for a waiter: idle, and not just waiting for the next request of its client."""
        idle = [s for s in self._slots.values() if s.is_idle and s.can_go and not s.queue]
        rested = [s for s in idle if self._is_rested(s)]
        asleep = [s for s in self._slots.values() if s.state is State.SLEEPING and s.is_settled and not s.queue]
        return self._ways(rested, [s for s in asleep if s is not slot and s.can_go])

    def _ways(self, awake: Iterable[Slot], asleep: Iterable[Slot]) -> list[list[Holding]]:
        """Return two ways of making room: all that can sleeps and the rest is stopped; or all of it is stopped."""
        costs = [(slot, self._sleep_cost(slot)) for slot in awake]
        first = [slot.holding(self._now, cost) for slot, cost in costs]
        second = [slot.holding(self._now) for slot in (*(s for s, _ in costs), *asleep)]
        return [second] if all(cost is None for _, cost in costs) else [first, second]

    def _sleep_cost(self, slot: Slot) -> SleepCost | None:
        """Return the quickest sleep that the host has RAM for; None if the model is better stopped."""
        taken_mb = sum(s.asleep.host_mb for s in self._slots.values() if s.asleep is not None)
        able = [cost for cost in slot.spec.sleep if taken_mb + cost.host_mb <= self._sleep_mb]
        best = min(able, key=lambda cost: cost.wake_s, default=None)
        return best if best is not None and best.wake_s < slot.load_s and not slot.sleeps_badly else None

    def _leaving(self, slot: Slot) -> list[Holding]:
        """Return whose memory will be free without anybody being sent away, and what a sleeping model itself holds."""
        leaving = [Holding(s.name, 0) for s in self._slots.values() if s.state is State.STOPPING]
        dozing = (s for s in self._slots.values() if s.state is State.SLEEPING and not s.is_settled and s.asleep)
        leaving += [Holding(s.name, 0, s.asleep.residual_mb) for s in dozing if s.asleep and s is not slot]
        leaving += [Holding(name, 0) for name in self._slots if self.ledger.lingers(name)]
        return [*leaving, *self._itself(slot)]

    def _itself(self, slot: Slot) -> list[Holding]:
        return [Holding(slot.name, 0)] if slot.state is State.SLEEPING else []

    def _send_away(self, victim: Holding) -> Iterator[Effect]:
        slot = self._slots[victim.name]
        cost = self._sleep_cost(slot) if victim.keeps_mb and slot.state is State.READY else None
        yield from self._make_go(slot, cost)

    def _make_go(self, slot: Slot, cost: SleepCost | None) -> Iterator[Effect]:
        if cost is None:
            yield from self._unload(slot)
            return
        slot.state = advance(slot.state, Step.SLEEP)
        slot.asleep, slot.is_settled = cost, False
        yield Sleep(slot.name, cost.level)

    def _start(self, slot: Slot, placement: Placement) -> Start:
        if slot.spec.managed:
            self.ledger.reserve(slot.name, placement)
        slot.placement, slot.claim, slot.blocked_since = placement, None, None
        slot.state = advance(slot.state, Step.START)
        return Start(slot.name, placement)

    def _stop_now(self, slot: Slot) -> Stop:
        slot.stop_by = None
        return Stop(slot.name)

    # -- choosing

    def _choose(self, demand: Demand, names: tuple[str, ...]) -> Selection:
        known = self._chosen.get((demand, names))
        if known is None:
            known = self._chosen[demand, names] = self._choose_anew(demand, names)
        return known

    def _choose_anew(self, demand: Demand, names: Iterable[str]) -> Selection:
        slots = [self._slots[name] for name in names if name in self._slots]
        rules = self._rules(demand)
        selection = select(demand, [self._candidate(slot) for slot in slots], rules)
        selection.best()  # raises the refusal if none could ever serve it
        free = [slot for slot in slots if not self._is_barred(slot)]
        if len(free) < len(slots):
            able = [candidate.name for candidate in selection.ranked]
            selection = select(demand, [self._candidate(slot) for slot in free], rules)
            if not selection.ranked:
                raise self._all_barred([self._slots[name] for name in able])
            if better := able[: able.index(selection.best().name)]:
                selection = replace(selection, reason=f"{selection.reason}; {', '.join(better)} cannot start now")
        return selection

    def _rules(self, demand: Demand) -> Rules:
        """Return the rules of the profile that was asked for; no machine can hold more than it has, though."""
        asked = self._profiles.get(demand.profile or "")
        return self.rules if asked is None else replace(asked, limit_mb=min(asked.limit_mb, self.rules.limit_mb))

    def _all_barred(self, slots: list[Slot]) -> RolecallError:
        backing_off = [slot for slot in slots if slot.is_backing_off(self._now)]
        if not backing_off:
            return self._no_room(slots[0])
        first = min(backing_off, key=lambda slot: slot.retry_at)
        return StartFailed(first.failure(), retry_after_s=first.retry_at - self._now)

    def _is_barred(self, slot: Slot) -> bool:
        if slot.is_backing_off(self._now):
            return True
        if not slot.spec.managed or not slot.is_cold or self._finds_room(slot):
            slot.blocked_since = None
            return False
        if not self._finds_room(slot, without_foreign=True):
            return True
        if slot.blocked_since is None:
            slot.blocked_since = self._now
        return self._now - slot.blocked_since >= FOREIGN_PATIENCE_S

    def _finds_room(self, slot: Slot, *, without_foreign: bool = False) -> bool:
        """Whether it has room when all go that can go: what is pinned stays, and so does what others hold."""
        options = self._options(slot)
        if not options:  # it was measured, and is too large for any card
            return False
        staying = [name for name in self._staying() if name != slot.name and self.ledger.held_mb(name)]
        if not staying and (without_foreign or not self.ledger.is_pressed):
            return True
        bare = Ledger(self.ledger.devices.values(), self.ledger.budget_mb, self.ledger.max_models)
        bare.foreign_mb = {} if without_foreign else self.ledger.foreign_mb
        for name in staying:
            bare.correct(name, self.ledger.held_on(name))
        return any(not bare.lack(option) for option in options)

    def _staying(self) -> list[str]:
        """Return the pinned models, loaded or not, that nobody has asked to go."""
        if not self._has_pinned:
            return []
        pinned = (slot for slot in self._slots.values() if slot.spec.managed and not slot.can_go)
        return [slot.name for slot in pinned if slot.state is not State.STOPPING]

    def _candidate(self, slot: Slot) -> Candidate:
        spec = slot.spec
        is_paid = slot.state in (State.READY, State.STARTING)
        unavailable = spec.unavailable
        if spec.managed and slot.is_cold and unavailable is None and not self._options(slot):
            unavailable = self._too_large(slot)
        costs_swap = spec.managed and not is_paid and not self._fits_now(slot)
        return Candidate(
            entry=spec.entry,
            footprint_mb=slot.need_mb,
            unavailable=unavailable,
            loaded=slot.state is State.READY,
            costs_swap=costs_swap,
            coming=slot.state is State.STARTING,
        )

    def _fits_now(self, slot: Slot) -> bool:
        itself = self._itself(slot)
        return any(not self.ledger.lack(option, itself) for option in self._options(slot))

    def _too_large(self, slot: Slot) -> str | None:
        need_mb = slot.need_mb
        if need_mb is not None and need_mb > self.rules.limit_mb:  # selection says it better
            return None
        allowed = [d for d in self.ledger.devices.values() if not slot.spec.devices or d.id in slot.spec.devices]
        most_mb = max((device.capacity_mb for device in allowed), default=0)
        if not allowed:
            return "none of the GPUs that its field gpus names is there"
        many = " or ".join(map(str, slot.spec.spread))
        if need_mb is None:
            return f"it asks for {many} GPUs, and it may use {len(allowed)}"
        return f"it needs {need_mb} MB on {many} of its {len(allowed)} GPUs, of which the largest holds {most_mb} MB"

    def _bind(self, waiter: Waiter, selection: Selection) -> None:
        """Let a waiter wait for what was chosen anew, among those that arrived before and after it."""
        old, waiter.selection = waiter.model, selection
        if waiter.model != old:
            del self._slots[old].queue[waiter.id]
            slot = self._slots[waiter.model]
            slot.queue[waiter.id] = waiter
            slot.queue = dict(sorted(slot.queue.items(), key=lambda item: (item[1].arrived, item[0])))

    def _rebind(self, waiters: Iterable[Waiter]) -> Iterator[Effect]:
        for waiter in list(waiters):
            try:
                self._bind(waiter, self._choose(waiter.demand, waiter.names))
            except RolecallError as error:
                self._forget(waiter.id)
                yield Reject(waiter.id, error)

    def _reject_all(self) -> Iterator[Effect]:
        for waiter in list(self._waiters):
            self._forget(waiter)
            yield Reject(waiter, ShuttingDown())

    def _no_room(self, slot: Slot) -> RolecallError:
        need = "a GPU of its own" if slot.need_mb is None else f"{slot.need_mb} MB"
        foreign_mb = sum(self.ledger.foreign_mb.values())
        if foreign_mb and self._finds_room(slot, without_foreign=True):
            return Unavailable(
                f"The model {slot.name!r} needs {need}, but other programs hold {foreign_mb} MB of the GPU memory "
                "(see nvidia-smi); end them, or ask for a smaller model.",
                retry_after_s=FOREIGN_PATIENCE_S,
            )
        pinned = [s.name for s in self._slots.values() if s.spec.entry.pinned and self.ledger.held_mb(s.name)]
        names, held_mb = ", ".join(pinned), sum(map(self.ledger.held_mb, pinned))
        return Unavailable(
            f"The model {slot.name!r} needs {need}, but pinned models ({names}) hold "
            f"{held_mb} of {self.ledger.budget_mb} MB and {len(pinned)} of {self.ledger.max_models} places; unpin one."
        )

    # -- groups

    def _together(self, slot: Slot) -> list[Slot]:
        """Return the model and those of its groups: a use of one is a use of all."""
        if not self._groups:
            return [slot]
        names = {name for group in self._groups if slot.name in group.models for name in group.models}
        return [slot, *(self._slots[name] for name in names - {slot.name} if name in self._slots)]

    def _is_in_group(self, slot: Slot) -> bool:
        return any(slot.name in group.models for group in self._groups)


def _devices(placement: Placement) -> frozenset[str]:
    return frozenset(share.device for share in placement)
