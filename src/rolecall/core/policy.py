"""Decisions, made after each event.

The policy, in the order in which ``_decide`` applies it:

1. A waiter whose model failed a moment ago, or has no room beside what stays, takes the next candidate of its role, or
   is told why there is none. A model that ran out of memory is first started again alone, then with less context; if
   no candidate is left it is started on the CPU where it may be.
2. The oldest waiter for a model that is not there is overtaken for no longer than ``max_overtake_s``, counted from its
   arrival. From then on its model claims a place: the models in its way take no newer request and drain; but one that
   was loaded a moment ago serves for a quarter of its load time, unless the waiter has been passed for
   ``max_overtake_s`` since the first request that passed it. Answers in flight are never cut for it, however long they
   take.
3. A waiter whose model is ready and has a free place is granted at once, in order of arrival: requests for the loaded
   model are collated before a swap.
4. Whoever still waits when the queue is full is turned away, the newest first. A model that is idle and is to be
   started otherwise by now is stopped.
5. One load at a time on each device: first the claims, then the models with the most waiters per second of load. What
   is idle makes room, the cheapest to bring back first: asleep if it can sleep, else stopped; never a pinned model,
   never one with a request in flight, and not in the moment between two requests of the same client.
6. When nobody waits for a load, what was stopped to be started otherwise is started into what is free, and then the
   rest of a group in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rolecall.core.events import Cause, Effect, Grant, Reject, Wake
from rolecall.core.intake import Intake
from rolecall.core.lifecycle import State, Step, advance
from rolecall.core.room import devices_of
from rolecall.core.slot import Claim, Slot, Waiter
from rolecall.core.vram import Holding, Placement
from rolecall.core.wording import spoken
from rolecall.errors import TooManyRequests

STALE_S = 60.0
"""A model that was idle for this long makes room for the rest of a group in use."""

RESIDENCY = 0.25
"""Part of its load time for which a model that has just been loaded serves, whoever is overdue."""

_LARGER = Cause("too_large", "it is larger than was thought, and starts anew elsewhere")
_OUTDATED = Cause("changed", "it is started anew with what was changed")


class Policy(Intake):
    """Says who is served, what is loaded and who has to go for it."""

    def _decide(self) -> Iterator[Effect]:
        """Decide after every event; the numbers are those of the module's docstring."""
        # 1. nobody waits for a model that cannot come
        for slot in self._slots.values():
            if slot.queue and slot.is_settled and not self._can_wake(slot):
                yield from self._unload(slot, _LARGER)
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
        if self._has_outdated:
            yield from self._end_outdated()
        # 5. what is missing is loaded
        missing = [slot for slot in missing if slot.queue]
        yield from self._load(missing, overdue)
        # 6. what was to be started anew comes back, and what belongs together comes together
        if self._has_outdated and not missing and not self._closing:
            yield from self._bring_back()
        if self._groups and not missing and not self._closing:
            yield from self._complete_groups()

    # -- claims

    def _claim(self, missing: Iterable[Slot]) -> list[Slot]:
        """Return the models whose oldest waiter was overtaken too long, oldest first, and renew all claims.

        A claim is kept while it still holds: chosen anew after every event, two loaded models would take turns in
        draining for ever.
        """
        overdue = self._overtaken(missing)
        claimed: set[str] = set()
        # After the overdue ones, those for whom somebody was sent away already: nobody else takes that room.
        for slot in (*overdue, *(s for s in self._slots.values() if s.claim is not None and s not in overdue)):
            if not slot.queue or not self._holds(slot.claim, claimed, slot):
                is_open = slot in overdue and not self.ledger.devices.keys() <= claimed
                fit = self._best_fit(slot, self._leaders(slot), claimed) if is_open else None
                slot.claim = None if fit is None else Claim(*fit)
            if slot.claim is not None:
                claimed.update(devices_of(slot.claim.placement))
                self.ledger.promised.append(slot.claim.placement)
        self.ledger.promised.clear()
        return overdue

    def _overtaken(self, missing: Iterable[Slot]) -> list[Slot]:
        """Return the models whose oldest waiter was overtaken too long, oldest first."""
        waiting = [(w.arrived, w.id, slot) for slot in missing if slot.takes_room and (w := slot.oldest) is not None]
        return [slot for arrived, _, slot in sorted(waiting) if self._now - arrived >= self.max_overtake_s]

    def _holds(self, claim: Claim | None, claimed: set[str], slot: Slot) -> bool:
        if claim is None or not claimed.isdisjoint(devices_of(claim.placement)):
            return False
        still = [v for v in claim.victims if self._slots[v.name].state in (State.READY, State.SLEEPING)]
        return not self.ledger.lack(claim.placement, [*self._leaving(slot), *still])

    def _leaders(self, slot: Slot) -> list[list[Holding]]:
        """Return who may have to make way for an overdue waiter: all that can go, idle or not."""
        able = [s for s in self._slots.values() if s.can_go and s is not slot]
        awake = [s for s in able if s.state is State.READY]
        asleep = [s for s in able if s.state is State.SLEEPING and s.is_settled]
        return self._ways(awake, asleep)

    # -- service

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
        devices = devices_of(slot.placement)
        for other in self._slots.values():
            if not other.is_cold or (oldest := other.oldest) is None or oldest.arrived > granted.arrived:
                continue
            if any(not devices.isdisjoint(devices_of(option)) for option in self._options(other)):
                other.note_passed(granted.arrived, self._now)

    def _turn_away(self) -> Iterator[Effect]:
        for waiter in list(self._waiters.values())[self.max_queue :] if len(self._waiters) > self.max_queue else ():
            slot = self._slots[waiter.model]
            self._forget(waiter.id)
            full = f"The queue is full: {self.max_queue} requests are waiting."
            yield Reject(waiter.id, TooManyRequests(full, retry_after_s=max(5, slot.comes_back_in_s)))

    # -- loads

    def _load(self, missing: list[Slot], overdue: list[Slot]) -> Iterator[Effect]:
        for slot in missing:
            if slot.is_on_cpu:
                yield from self._make_room_in_host(slot)
            if not slot.takes_room and not self.ledger.lingers(slot.name) and self._has_host_room(slot):
                yield self._start(slot, (), self._wanted(slot))
        taken = self._loading_on()
        yield from self._load_overdue(overdue, taken)
        others = [slot for slot in missing if slot.takes_room and slot.is_cold and slot not in overdue]
        yield from self._load_others(others, taken)

    def _loading_on(self) -> set[str]:
        """Return the devices on which something loads or wakes."""
        return {share.device for s in self._slots.values() if s.state is State.STARTING for share in s.placement}

    def _load_overdue(self, overdue: list[Slot], taken: set[str]) -> Iterator[Effect]:
        for slot in overdue:
            if slot.queue and slot.claim is not None:
                for victim in slot.claim.victims:
                    if self._goes_now(self._slots[victim.name], slot.queue):
                        yield from self._send_away(victim, self._overdue(slot))
                yield from self._break_off(slot, slot.claim.placement)
                yield from self._come(slot, slot.claim.placement, taken)

    def _overdue(self, slot: Slot) -> str:
        waited_s = self._now - next(iter(slot.queue.values())).arrived
        return f"{slot.name}, for which a request has waited {spoken(waited_s)}"

    def _goes_now(self, victim: Slot, overdue: Mapping[int, Waiter]) -> bool:
        oldest = next(iter(overdue.values()))
        if victim.is_idle and self._stays_a_while(victim, oldest):
            return self._is_rested(victim)
        return victim.is_idle or victim.state is State.SLEEPING

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
                yield from self._send_away(victim, slot.name)
            slot.claim = Claim(placement, victims) if victims else None
            yield from self._come(slot, placement, taken)

    def _come(self, slot: Slot, placement: Placement, taken: set[str], words: str = "") -> Iterator[Effect]:
        """Start or wake the model where it is to lie, or keep others from that place until it can.

        ``words`` say for whom; by default for those who wait for it.
        """
        free = taken.isdisjoint(devices_of(placement))
        taken.update(devices_of(placement))
        is_awaited = self.ledger.lingers(slot.name) or (slot.state is State.SLEEPING and not slot.is_settled)
        if not free or is_awaited or self.ledger.lack(placement, self._itself(slot)):
            self.ledger.promised.append(placement)
        elif slot.state is State.SLEEPING:
            self.ledger.rouse(slot.name, placement)
            slot.state = advance(slot.state, Step.START)
            yield Wake(slot.name, slot.is_swap, words or self._wanted(slot))
        else:
            yield self._start(slot, placement, words or self._wanted(slot))

    def _break_off(self, slot: Slot, placement: Placement) -> Iterator[Effect]:
        """Stop a load on these devices that nobody waits for any more, if it keeps the model from its place."""
        devices = devices_of(placement)
        for other in list(self._slots.values()):
            is_unwanted = other.state is State.STARTING and not other.queue and other.can_go and other is not slot
            if is_unwanted and not devices.isdisjoint(devices_of(other.placement)):
                yield from self._unload(
                    other, Cause("unwanted", f"nobody waits for it, and {slot.name} needs its place")
                )

    # -- models that are to be started otherwise

    def _end_outdated(self) -> Iterator[Effect]:
        for slot in self._slots.values():
            if slot.is_outdated and slot.is_idle:
                slot.grow_back()
                slot.comes_back = True
                yield from self._unload(slot, _OUTDATED)

    def _bring_back(self) -> Iterator[Effect]:
        """Start them into what is free; a model that has no room by now is started when it is asked for."""
        for slot in [s for s in self._slots.values() if s.comes_back and s.state is State.STOPPED]:
            if not self.ledger.lingers(slot.name):
                taken = self._loading_on()
                fit = self._best_fit(slot, [[]], taken) if slot.spec.unavailable is None else None
                slot.comes_back = bool(taken)
                if fit is not None:
                    yield from self._come(slot, fit[0], taken, "it was stopped to be started with what was changed")
        self._has_outdated = any(slot.is_outdated or slot.comes_back for slot in self._slots.values())

    # -- groups

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
                        yield from self._send_away(victim, f"{slot.name} of the group {group.name} in use")
                    yield from self._come(slot, fit[0], taken, f"the group {group.name} is in use")
                    is_loading = True

    def _may_follow(self, slot: Slot) -> bool:
        """Whether a model of a group in use is to be loaded before anybody asks for it."""
        if slot.state not in (State.STOPPED, State.SLEEPING) or slot.is_unwanted or slot.removed:
            return False
        idle_s = slot.spec.idle_unload_s
        is_recent = idle_s <= 0 or self._now - slot.last_used < idle_s
        return slot.spec.managed and slot.spec.unavailable is None and not slot.failures and is_recent
