"""Room: where a model may lie, who may go for it, and what then happens to them.

The scheduler is written in layers, each a class that knows those below it: `Room` has the state that all share,
`choosing.Choosing` says which model a request waits for, `intake.Intake` takes events in, `policy.Policy` decides, and
`scheduler.Scheduler` is what others see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from rolecall.core.events import Cause, Effect, Group, Sleep, SleepCost, Start, Stop
from rolecall.core.lifecycle import State, Step, advance
from rolecall.core.selection import Rules
from rolecall.core.slot import Slot, Waiter
from rolecall.core.vram import Holding, Ledger, Placement, placements, plan_eviction
from rolecall.core.wording import counted

_FEW_DEVICES = 8
_LOADED = {"hand": "loaded by hand", "preload": "loaded at the start"}
_IN_MEMORY = (State.STARTING, State.READY, State.STOPPING)


@dataclass
class Room:
    """Slots, waiters and reservations, and what sets models in motion."""

    max_overtake_s: float = 20
    max_queue: int = 1000
    drain_limit_s: float = 300
    linger_share: float = 0.05
    """Part of its load time for which an idle model is kept for the next request of a client that comes back."""
    rules: Rules = field(default_factory=lambda: Rules(limit_mb=0), init=False)
    ledger: Ledger = field(default_factory=Ledger, init=False)
    _slots: dict[str, Slot] = field(default_factory=dict, init=False)
    _waiters: dict[int, Waiter] = field(default_factory=dict, init=False)
    _groups: tuple[Group, ...] = field(default=(), init=False)
    _sleep_mb: int = field(default=0, init=False)
    _host_mb: int = field(default=0, init=False)
    _closing: bool = field(default=False, init=False)
    _has_pinned: bool = field(default=False, init=False)
    _has_outdated: bool = field(default=False, init=False)
    """Whether any model is to be started otherwise, or is on its way back from that."""
    _now: float = field(default=0, init=False)
    _places: dict[tuple[int | None, tuple[int, ...], tuple[str, ...]], list[Placement]] = field(
        default_factory=dict, init=False
    )
    """Where models of a size may lie, until the devices change."""

    # -- where it may lie

    def _options(self, slot: Slot) -> list[Placement]:
        """Return where the model may lie; a sleeping one stays on its devices."""
        if slot.state is State.SLEEPING:
            return [slot.placement]
        if slot.is_on_cpu:
            return []
        key = slot.need_mb, slot.spec.spread, slot.spec.devices
        if slot.need_mb is None:
            spread = [count for count in slot.spec.spread if count >= slot.least_devices] or slot.spec.spread
            return placements(self.ledger, None, spread, slot.spec.devices, slot.least_mb)
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
        options = [option for option in self._options(slot) if devices_of(option).isdisjoint(taken)]
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

    def _fits_now(self, slot: Slot) -> bool:
        itself = self._itself(slot)
        return any(not self.ledger.lack(option, itself) for option in self._options(slot))

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

    def _can_wake(self, slot: Slot) -> bool:
        """Whether a sleeping model would fit where it lies if it were alone; the devices may be smaller by now."""
        bare = Ledger(self.ledger.devices.values(), self.ledger.budget_mb, self.ledger.max_models)
        return slot.state is not State.SLEEPING or not bare.lack(slot.placement)

    def _staying(self) -> list[str]:
        """Return the pinned models, loaded or not, that nobody has asked to go."""
        if not self._has_pinned:
            return []
        pinned = (slot for slot in self._slots.values() if slot.spec.managed and not slot.can_go)
        return [slot.name for slot in pinned if slot.state is not State.STOPPING]

    # -- who may go

    def _idle(self, slot: Slot) -> list[list[Holding]]:
        """Return what may make room for a waiter: idle, and not just waiting for the next request of its client."""
        idle = [s for s in self._slots.values() if s.is_idle and s.can_go and not s.queue]
        rested = [s for s in idle if self._is_rested(s)]
        asleep = [s for s in self._slots.values() if s.state is State.SLEEPING and s.is_settled and not s.queue]
        return self._ways(rested, [s for s in asleep if s is not slot and s.can_go])

    def _is_rested(self, slot: Slot) -> bool:
        """Whether an idle model is no longer kept for the next request of its client."""
        return self._now >= slot.idle_since + slot.linger_s(self.linger_share)

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
        best = None if slot.is_on_cpu else min(able, key=lambda cost: cost.wake_s, default=None)
        return best if best is not None and best.wake_s < slot.load_s and not slot.sleeps_badly else None

    def _leaving(self, slot: Slot) -> list[Holding]:
        """Return whose memory will be free without anybody being sent away, and what a sleeping model itself holds."""
        leaving = [Holding(s.name, 0) for s in self._going()]
        dozing = (s for s in self._slots.values() if s.state is State.SLEEPING and not s.is_settled and s.asleep)
        leaving += [Holding(s.name, 0, s.asleep.residual_mb) for s in dozing if s.asleep and s is not slot]
        leaving += [Holding(name, 0) for name in self._slots if self.ledger.lingers(name)]
        return [*leaving, *self._itself(slot)]

    def _itself(self, slot: Slot) -> list[Holding]:
        return [Holding(slot.name, 0)] if slot.state is State.SLEEPING else []

    # -- what then happens

    def _start(self, slot: Slot, placement: Placement, words: str) -> Start:
        if slot.takes_room:
            self.ledger.reserve(slot.name, placement)
        is_swap = slot.is_swap
        slot.placement, slot.claim, slot.blocked_since = placement, None, None
        slot.host_mb = (slot.spec.cpu_mb or 0) if slot.is_on_cpu else 0
        slot.is_alone, slot.started_as = slot.starts_alone, slot.spec
        slot.is_outdated = slot.comes_back = False
        slot.state = advance(slot.state, Step.START)
        return Start(slot.name, placement, slot.reduction, is_swap, words)

    def _wanted(self, slot: Slot) -> str:
        """Return why a model is loaded that somebody waits for: for the requests, if there are any."""
        first = next(iter(slot.queue.values()))
        requests = [waiter for waiter in slot.queue.values() if waiter.purpose == "request"]
        if requests:
            first, what = requests[0], counted(len(requests), "request")
        else:
            what = _LOADED[first.purpose]
        role = first.demand.role
        return what if role is None else f"{what} for the role {role}: {first.selection.reason}"

    def _send_away(self, victim: Holding, whom: str) -> Iterator[Effect]:
        slot = self._slots[victim.name]
        cost = self._sleep_cost(slot) if victim.keeps_mb and slot.state is State.READY else None
        yield from self._make_go(slot, cost, Cause("room", f"made room for {whom}"))

    def _make_go(self, slot: Slot, cost: SleepCost | None, cause: Cause) -> Iterator[Effect]:
        if cost is None:
            yield from self._unload(slot, cause)
            return
        slot.state = advance(slot.state, Step.SLEEP)
        slot.asleep, slot.is_settled = cost, False
        yield Sleep(slot.name, cost.level, cause.why, cause.words)

    def _unload(self, slot: Slot, cause: Cause) -> Iterator[Effect]:
        if slot.state is State.STOPPED:
            return
        if slot.state is State.STOPPING:
            slot.goes_for = cause  # it was in another one's way, say, and is unloaded by hand now
            return
        was, slot.goes_for = slot.state, cause
        slot.went_from = was
        slot.state = advance(slot.state, Step.STOP)
        slot.error = ""
        if was is State.FAILED:
            slot.failures = 0
        elif slot.in_flight and was is State.READY:
            slot.stop_by = self._now + self.drain_limit_s
        else:
            yield self._stop_now(slot)

    def _stop_now(self, slot: Slot) -> Stop:
        slot.stop_by = None
        return Stop(slot.name, slot.goes_for.why, slot.goes_for.words)

    # -- the host's memory, for engines on the CPU beside GPUs

    def _has_host_room(self, slot: Slot, gone: Collection[Slot] = ()) -> bool:
        """Whether a model has room in host RAM once these have gone as well."""
        if not slot.spec.managed:
            return True
        staying = (s for s in self._slots.values() if s.state in _IN_MEMORY and s is not slot and s not in gone)
        return slot.spec.cpu_mb is not None and slot.spec.cpu_mb + sum(s.host_mb for s in staying) <= self._host_mb

    def _can_have_host_room(self, slot: Slot) -> bool:
        """Whether it has room in host RAM once those have gone that are going, and those that can."""
        return self._has_host_room(slot, [*self._going(), *self._idle_in_host()])

    def _make_room_in_host(self, slot: Slot) -> Iterator[Effect]:
        for other in sorted(self._idle_in_host(), key=lambda other: other.last_used):
            if not self._has_host_room(slot, self._going()):
                yield from self._unload(other, Cause("room", f"made room in host RAM for {slot.name}"))

    def _going(self) -> list[Slot]:
        return [s for s in self._slots.values() if s.state is State.STOPPING]

    def _idle_in_host(self) -> list[Slot]:
        return [s for s in self._slots.values() if s.is_on_cpu and s.is_idle and s.can_go and not s.queue]

    # -- groups

    def _together(self, slot: Slot) -> list[Slot]:
        """Return the model and those of its groups: a use of one is a use of all."""
        if not self._groups:
            return [slot]
        names = {name for group in self._groups if slot.name in group.models for name in group.models}
        return [slot, *(self._slots[name] for name in names - {slot.name} if name in self._slots)]

    def _is_in_group(self, slot: Slot) -> bool:
        return any(slot.name in group.models for group in self._groups)


def devices_of(placement: Placement) -> frozenset[str]:
    """Return the devices of a placement."""
    return frozenset(share.device for share in placement)
