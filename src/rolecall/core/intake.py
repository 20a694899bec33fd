"""Events: what each of them changes before anything is decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from rolecall.core.choosing import Choosing
from rolecall.core.events import (
    Adopted,
    Arrived,
    BecameReady,
    Cancelled,
    Cause,
    Configured,
    Effect,
    Event,
    Exited,
    FellAsleep,
    Freed,
    Measured,
    Observed,
    Pinned,
    Reject,
    Released,
    ShutdownRequested,
    UnloadRequested,
)
from rolecall.core.lifecycle import State, Step, advance
from rolecall.core.reductions import next_context
from rolecall.core.slot import REDUCED_S, Slot, Waiter, backoff_s
from rolecall.core.vram import Placement
from rolecall.core.wording import spoken
from rolecall.errors import Conflict, RolecallError, ShuttingDown

_BEGINS_ANEW = ("unload", "changed")
"""What a model goes for whose failures are forgotten with it."""
_MORE = 1.2
"""What a model is given that ran out of memory and was not measured since, times what was not enough."""

_AT_THE_END = Cause("unload", "rolecall is shutting down")
_BY_HAND = Cause("unload", "unloaded by hand")
_REMOVED = Cause("changed", "it was removed from the registry")
_CHANGED = Cause("changed", "its entry, or the GPUs, have changed")

SLEEP_ROUNDS = 6
"""A sleeping model is stopped after this many times its ``idle_unload_s``."""


class Intake(Choosing):
    """Takes one event in."""

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
                yield from self._unload_asked_for(self._slots[event.model])
            case Pinned():
                self._pin(self._slots[event.model], pinned=event.pinned)
            case Configured():
                yield from self._configured(event)
            case ShutdownRequested():
                self._closing = True
                yield from self._reject_all()
            case _:  # Tick
                yield from self._tick()

    # -- requests

    def _arrived(self, event: Arrived) -> Iterator[Effect]:
        if self._closing:
            yield Reject(event.waiter, ShuttingDown())
            return
        for name in event.names:
            if name in self._slots and not self._slots[name].queue:
                self._slots[name].blocked_since = None  # patience begins anew with the first who waits
                self._grow_back(self._slots[name])
        try:
            selection = self._choose_at_last(event.demand, event.names)
        except RolecallError as error:
            yield Reject(event.waiter, error)
            return
        waiter = Waiter(event.waiter, event.demand, event.names, self._now, selection, event.purpose)
        slot = self._slots[waiter.model]
        self._want(slot)
        self._waiters[waiter.id] = slot.queue[waiter.id] = waiter

    def _want(self, slot: Slot) -> None:
        slot.is_unwanted = False
        if slot.is_idle and self._now - slot.idle_since <= slot.linger_s(self.linger_share):
            slot.remember_return(came=True)
        for member in self._together(slot):
            member.use(self._now)

    def _released(self, slot: Slot) -> Iterator[Effect]:
        slot.in_flight -= 1
        slot.idle_since = self._now
        for member in self._together(slot):
            member.last_used = self._now
        if slot.state is State.STOPPING and slot.in_flight == 0 and slot.stop_by is not None:
            yield self._stop_now(slot)

    # -- engines

    def _became_ready(self, slot: Slot, load_s: float | None) -> Iterator[Effect]:
        if slot.state is not State.STARTING:  # it was asked to stop while it was loading
            return
        slot.state = advance(slot.state, Step.BECOME_READY)
        if load_s is not None:
            slot.learn_time(load_s)
        slot.asleep = slot.claim = None
        slot.last_used = slot.ready_since = slot.idle_since = self._now
        slot.error = ""
        slot.has_run_out &= slot.reduction is not None
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
        is_stopping = slot.state is State.STOPPING
        ended_by_itself = event.by_itself or not is_stopping
        was = slot.went_from if is_stopping else slot.state
        woke_badly = ended_by_itself and was is State.STARTING and slot.asleep is not None
        crashed = was in (State.READY, State.SLEEPING) or woke_badly
        is_held_against = is_stopping and ended_by_itself and slot.goes_for.why not in _BEGINS_ANEW
        slot.state = advance(slot.state, Step.CRASH if is_held_against else Step.EXIT)
        slot.stop_by = slot.asleep = None
        slot.sleeps_badly |= woke_badly
        self.ledger.linger(slot.name)
        if slot.state is not State.FAILED:
            slot.failures = 0
            return
        slot.has_run_out = event.out_of_memory and not woke_badly and slot.takes_room
        is_mended = slot.has_run_out and self._mend(slot)
        if is_mended and not crashed:
            slot.error, slot.has_crashed, slot.retry_at = event.error, False, self._now
            return
        slot.fail(event.error, self._now, crashed=crashed)
        if slot.has_run_out:  # with nothing left to change the next model of its role has its turn, or the CPU
            slot.retry_at = self._now + (0 if is_mended else backoff_s(slot.failures, crashed=False))

    def _mend(self, slot: Slot) -> bool:
        """Have a model that ran out of memory started otherwise next; whether there was anything left to change.

        It needs more than was thought: next it gets its devices for itself, or more of them, and is measured. Where it
        had all that, it is made smaller.
        """
        if self._has_more_to_give(slot):
            slot.give_more()
            return True
        if (smaller := next_context(slot.spec.smaller, slot.reduction)) is None:
            return False
        slot.reduce(smaller, self._now)
        return True

    def _has_more_to_give(self, slot: Slot) -> bool:
        """Whether a model that ran out of memory can be given a device of its own, or more devices."""
        more = range(len(slot.placement) + 1, len(self.ledger.devices) + 1)
        return not slot.is_alone or any(count in more for count in slot.spec.spread)

    def _grow_back(self, slot: Slot) -> None:
        """Forget after a while that a model ran out of memory, where it has to be started anyway."""
        if slot.reduction is not None and slot.is_cold and self._now - slot.reduced_at >= REDUCED_S:
            slot.grow_back()

    def _adopted(self, slot: Slot, placement: Placement) -> None:
        for step in (Step.START, Step.BECOME_READY):
            slot.state = advance(slot.state, step)
        slot.placement, slot.started_as = placement, slot.spec
        slot.last_used = slot.ready_since = slot.idle_since = self._now
        if placement:
            self.ledger.correct(slot.name, {share.device: share.mb for share in placement})

    def _unload_asked_for(self, slot: Slot) -> Iterator[Effect]:
        slot.is_unwanted, slot.comes_back = True, False
        slot.reduced_at = -math.inf  # its full size is tried again
        for waiter in [waiter for waiter in slot.queue.values() if waiter.purpose != "request"]:
            self._forget(waiter.id)
            yield Reject(waiter.id, Conflict(f"The model {slot.name!r} was unloaded meanwhile; it is not loaded."))
        yield from self._unload(slot, _AT_THE_END if self._closing else _BY_HAND)

    # -- registry and time

    def _configured(self, event: Configured) -> Iterator[Effect]:
        self.rules, self._groups, self._profiles = event.rules, event.groups, event.profiles
        self._sleep_mb, self._host_mb = event.sleep_mb, event.host_mb
        self.ledger.configure(event.devices, event.budget_mb, event.max_models)
        self._places.clear()
        specs = {spec.name: spec for spec in event.specs}
        for name, slot in list(self._slots.items()):
            spec = specs.pop(name, None)
            slot.removed = spec is None
            new = spec or replace(slot.spec, unavailable="it was removed from the registry")
            differs = not new.starts_like(slot.spec)
            if slot.removed or new.entry.pinned != slot.spec.entry.pinned:  # the latest word counts
                slot.pinned = None
            goes_on = event.at_idle and slot.state is State.READY and slot.spec.managed
            stale = slot.removed or (differs and not goes_on) or not self._can_wake(slot)
            slot.spec = new
            if goes_on and slot.started_as is not None:
                slot.is_outdated = not new.starts_like(slot.started_as)
            if stale:
                slot.grow_back()
                slot.sleeps_badly = False
                yield from self._unload(slot, _REMOVED if slot.removed else _CHANGED)
            slot.claim = None  # who was to go may be somebody else now
            if slot.removed and slot.state is State.STOPPED and not slot.queue and not self.ledger.lingers(name):
                del self._slots[name]
        self._slots.update((name, Slot(spec, spec.load_s)) for name, spec in specs.items())
        self._has_pinned = any(slot.is_pinned for slot in self._slots.values())
        self._has_outdated |= any(slot.is_outdated for slot in self._slots.values())
        yield from self._rebind(self._waiters.values())

    def _pin(self, slot: Slot, *, pinned: bool) -> None:
        slot.pinned = None if slot.removed else pinned
        self._has_pinned = any(slot.is_pinned for slot in self._slots.values())
        for other in self._slots.values():
            other.claim = None  # who was to go may be somebody else now

    def _tick(self) -> Iterator[Effect]:
        for slot in list(self._slots.values()):
            if slot.stop_by is not None and self._now >= slot.stop_by:
                yield self._stop_now(slot)
            elif (end := self._idle_end(slot)) is not None and self._now >= end:
                cost = self._sleep_cost(slot) if slot.state is State.READY else None
                yield from self._make_go(slot, cost, _idle(slot, self._now))

    def _idle_end(self, slot: Slot) -> float | None:
        """Return when a model is unloaded, or a sleeping one stopped, because nobody wants it."""
        idle_s = slot.spec.idle_unload_s
        if idle_s <= 0 or slot.queue or not slot.can_go:
            return None
        if slot.is_idle:
            return slot.last_used + idle_s
        is_asleep = slot.state is State.SLEEPING and slot.is_settled
        return slot.last_used + SLEEP_ROUNDS * idle_s if is_asleep else None


def _idle(slot: Slot, now: float) -> Cause:
    words = f"idle for {spoken(now - slot.last_used)}"
    return Cause("idle", f"{words}, asleep" if slot.state is State.SLEEPING else words)
