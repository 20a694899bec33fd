"""Who is served, what is started and what has to go: events in, effects out; no clock, no I/O.

`policy` says by which rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rolecall.core.choosing import FOREIGN_PATIENCE_S
from rolecall.core.events import Arrived, Effect, Event, Grant, Released
from rolecall.core.lifecycle import State
from rolecall.core.policy import RESIDENCY, Policy
from rolecall.core.selection import Candidate, Demand, Selection
from rolecall.core.slot import ModelStatus, Slot, Waiting, status_rows


@dataclass
class Scheduler(Policy):
    """The only owner of slots, waiters and reservations; ``handle`` is its one way in."""

    _settled: dict[tuple[Demand, tuple[str, ...]], Selection] = field(default_factory=dict, init=False)
    """Selections that hold until something else happens than that a loaded model serves."""
    _deadline: float | None = field(default=None, init=False)
    _knows_deadline: bool = field(default=False, init=False)

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

    # -- the traffic of loaded models while nobody waits: in short what the events and decisions come to

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
        if slot is None or slot.state is not State.READY or slot.is_outdated:
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

    def is_outdated(self, name: str) -> bool:
        """Whether a model's engine runs as an earlier registry or configuration said, until it is idle."""
        slot = self._slots.get(name)
        return slot is not None and slot.is_outdated

    def waiting(self) -> int:
        """Return the number of requests in the queue."""
        return len(self._waiters)

    def waited_s(self, now: float) -> float:
        """Return how long the oldest request has been in the queue; 0 for an empty one."""
        return now - min((waiter.arrived for waiter in self._waiters.values()), default=now)

    def waits_for(self, waiter: int) -> tuple[str, int] | None:
        """Return the model that a waiter waits for, and how many wait for that before it; None if it waits no more."""
        if (waiting := self._waiters.get(waiter)) is None:
            return None
        return waiting.model, list(self._slots[waiting.model].queue).index(waiter)

    def queue(self) -> list[Waiting]:
        """Return all that wait, the oldest first."""
        places = {waiter: place for slot in self._slots.values() for place, waiter in enumerate(slot.queue, 1)}
        return [
            Waiting(waiter.id, waiter.model, waiter.demand.role, waiter.purpose, waiter.arrived, places[waiter.id])
            for waiter in self._waiters.values()
        ]

    def load_s(self, name: str) -> float:
        """Return how long a model's start, or its waking, is expected to take."""
        return self._slots[name].comes_back_in_s

    def etas(self, loading: Mapping[str, float]) -> dict[str, float | None]:
        """Return in how many seconds each model that is waited for, and that nothing loads yet, is expected to answer.

        Each device loads one model at a time, in the order in which the next would be chosen now; ``loading`` says how
        long those that load will still take. None where room must first be made, and behind one for which it must:
        nobody knows how long answers in flight will take.
        """
        free_in_s: dict[str, float] = {}
        for slot in self._slots.values():
            if slot.state is State.STARTING:
                rest_s = loading.get(slot.name, slot.comes_back_in_s)
                free_in_s.update((share.device, rest_s) for share in slot.placement)
        etas = {slot.name: self._eta_s(slot, free_in_s) for slot in self._coming()}
        self.ledger.promised.clear()
        return etas

    def _coming(self) -> list[Slot]:
        """Return the models that are missing and need room, in the order in which they are loaded."""
        missing = [slot for slot in self._slots.values() if slot.queue and slot.is_cold and slot.takes_room]
        overdue = self._overtaken(missing)
        return [*overdue, *self._in_turn(slot for slot in missing if slot not in overdue)]

    def _eta_s(self, slot: Slot, free_in_s: dict[str, float]) -> float | None:
        """Return when a model answers for which a place is taken behind those that came before; None if unknown.

        ``free_in_s`` is when each device has loaded what came before, infinite where nobody knows; it is brought up to
        date, and so are the ledger's promises.
        """
        options = self._options(slot) if slot.claim is None else [slot.claim.placement]
        itself = self._itself(slot)
        is_free = not self.ledger.lingers(slot.name) and (slot.state is not State.SLEEPING or slot.is_settled)
        fits = [option for option in options if is_free and not self.ledger.lack(option, itself)]
        begins_s = [max(free_in_s.get(share.device, 0.0) for share in option) for option in fits]
        if not fits:
            free_in_s.update((share.device, math.inf) for option in options for share in option)
            return None
        first = begins_s.index(min(begins_s))
        eta_s = begins_s[first] + slot.comes_back_in_s
        free_in_s.update((share.device, eta_s) for share in fits[first])
        self.ledger.promised.append(fits[first])
        return eta_s if math.isfinite(eta_s) else None

    def residual_mb(self, name: str) -> int:
        """Return what a model that falls asleep keeps on each of its devices."""
        slot = self._slots[name]
        return slot.asleep.residual_mb if slot.asleep else 0

    def status(self, now: float) -> list[ModelStatus]:
        """Return one row per model of the registry, by name."""
        return status_rows(self._slots.values(), {name: self.ledger.held_mb(name) for name in self._slots}, now)

    # -- time

    def wake_at(self) -> float | None:
        """Return when time alone will change something, so that a ``Tick`` is due; None if it will not.

        It may be too early where models have served since: a ``Tick`` then changes nothing.
        """
        if not self._knows_deadline:
            self._deadline, self._knows_deadline = min(self._deadlines(), default=None), True
        return self._deadline

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
