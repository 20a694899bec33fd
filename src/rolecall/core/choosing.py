"""Which model a request waits for: chosen when it comes, and anew when that one cannot come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from rolecall.core.events import Effect, Reject
from rolecall.core.lifecycle import State
from rolecall.core.reductions import Reduction
from rolecall.core.room import Room
from rolecall.core.selection import Candidate, Demand, Rules, Selection, select
from rolecall.core.slot import Slot, Waiter
from rolecall.errors import ModelTooLarge, NotFound, RolecallError, ShuttingDown, StartFailed, Unavailable

FOREIGN_PATIENCE_S = 10.0
"""How long a request waits for memory that other programs hold before it is told so."""


@dataclass
class Choosing(Room):
    """Binds waiters to models, or says why there is none."""

    _profiles: Mapping[str, Rules] = field(default_factory=dict, init=False)
    _chosen: dict[tuple[Demand, tuple[str, ...]], Selection] = field(default_factory=dict, init=False)
    """Selections of the present event: many waiters ask the same."""

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
                ran_out = tuple(name for name in better if self._slots[name].has_run_out)
                why = f"{selection.reason}; {', '.join(better)} cannot start now"
                selection = replace(selection, reason=why, out_of_memory=ran_out)
        return selection

    def _choose_at_last(self, demand: Demand, names: tuple[str, ...]) -> Selection:
        """Choose; where nobody is left, the best that lacks memory on the GPUs is tried on the CPU, if one may be."""
        try:
            return self._choose(demand, names)
        except (StartFailed, NotFound, ModelTooLarge):
            if (best := self._last_resort(demand, names)) is None:
                raise
        best.reduce(Reduction(on_cpu=True), self._now)
        best.retry_at = self._now
        self._chosen.clear()
        return self._choose(demand, names)

    def _last_resort(self, demand: Demand, names: Iterable[str]) -> Slot | None:
        slots = [self._slots[name] for name in names if name in self._slots and self._may_go_to_cpu(self._slots[name])]
        candidates = [Candidate(slot.spec.entry, 0, slot.spec.unavailable) for slot in slots]
        ranked = select(demand, candidates, self._rules(demand)).ranked
        return self._slots[ranked[0].name] if ranked else None

    def _may_go_to_cpu(self, slot: Slot) -> bool:
        """Whether a model that ran out of memory, or that no GPU could ever hold, may run in host RAM."""
        if slot.spec.cpu_mb is None or slot.is_on_cpu or not slot.is_cold:
            return False
        return (slot.has_run_out or not self._options(slot)) and self._can_have_host_room(slot)

    def _rules(self, demand: Demand) -> Rules:
        """Return the rules of the profile that was asked for; no machine can hold more than it has, though."""
        asked = self._profiles.get(demand.profile or "")
        return self.rules if asked is None else replace(asked, limit_mb=min(asked.limit_mb, self.rules.limit_mb))

    def _candidate(self, slot: Slot) -> Candidate:
        spec = slot.spec
        is_paid = slot.state in (State.READY, State.STARTING)
        unavailable = spec.unavailable
        if slot.takes_room and slot.is_cold and unavailable is None and not self._options(slot):
            unavailable = self._too_large(slot)
        costs_swap = slot.takes_room and not is_paid and not self._fits_now(slot)
        return Candidate(
            entry=spec.entry,
            footprint_mb=slot.need_mb,
            unavailable=unavailable,
            loaded=slot.state is State.READY,
            costs_swap=costs_swap,
            coming=slot.state is State.STARTING,
            swap_s=slot.comes_back_in_s if costs_swap else None,
        )

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

    # -- who cannot come

    def _is_barred(self, slot: Slot) -> bool:
        if slot.is_backing_off(self._now):
            return True
        if slot.is_on_cpu and slot.is_cold and not self._can_have_host_room(slot):
            return True
        if not slot.takes_room or not slot.is_cold or self._finds_room(slot):
            slot.blocked_since = None
            return False
        if not self._finds_room(slot, without_foreign=True):
            return True
        if slot.blocked_since is None:
            slot.blocked_since = self._now
        return self._now - slot.blocked_since >= FOREIGN_PATIENCE_S

    def _all_barred(self, slots: list[Slot]) -> RolecallError:
        backing_off = [slot for slot in slots if slot.is_backing_off(self._now)]
        if not backing_off:
            return self._no_room(slots[0])
        first = min(backing_off, key=lambda slot: slot.retry_at)
        return StartFailed(first.failure(), retry_after_s=first.retry_at - self._now)

    def _no_room(self, slot: Slot) -> RolecallError:
        if slot.is_on_cpu:
            return Unavailable(
                f"The model {slot.name!r} ran out of GPU memory and needs {slot.spec.cpu_mb} MB of host RAM to run on "
                f"the CPU; models there may take {self._host_mb} MB, and others are in use. Send it again later.",
                retry_after_s=FOREIGN_PATIENCE_S,
            )
        need = "a GPU of its own" if slot.need_mb is None else f"{slot.need_mb} MB"
        foreign_mb = sum(self.ledger.foreign_mb.values())
        if foreign_mb and self._finds_room(slot, without_foreign=True):
            return Unavailable(
                f"The model {slot.name!r} needs {need}, but other programs hold {foreign_mb} MB of the GPU memory "
                "(see nvidia-smi); end them, or ask for a smaller model.",
                retry_after_s=FOREIGN_PATIENCE_S,
            )
        pinned = [s.name for s in self._slots.values() if s.is_pinned and self.ledger.held_mb(s.name)]
        names, held_mb = ", ".join(pinned), sum(map(self.ledger.held_mb, pinned))
        return Unavailable(
            f"The model {slot.name!r} needs {need}, but pinned models ({names}) hold "
            f"{held_mb} of {self.ledger.budget_mb} MB and {len(pinned)} of {self.ledger.max_models} places; unpin one."
        )

    # -- who waits for what

    def _bind(self, waiter: Waiter, selection: Selection) -> None:
        """Let a waiter wait for what was chosen anew, among those that arrived before and after it.

        A model that comes for it already was chosen for other reasons: what it cost is paid by now.
        """
        if selection.best().name == waiter.model and not self._slots[waiter.model].is_cold:
            return
        old, waiter.selection = waiter.model, selection
        if waiter.model != old:
            del self._slots[old].queue[waiter.id]
            slot = self._slots[waiter.model]
            slot.queue[waiter.id] = waiter
            slot.queue = dict(sorted(slot.queue.items(), key=lambda item: (item[1].arrived, item[0])))

    def _rebind(self, waiters: Iterable[Waiter]) -> Iterator[Effect]:
        for waiter in list(waiters):
            try:
                self._bind(waiter, self._choose_at_last(waiter.demand, waiter.names))
            except RolecallError as error:
                self._forget(waiter.id)
                yield Reject(waiter.id, error)

    def _forget(self, waiter: int) -> None:
        if (gone := self._waiters.pop(waiter, None)) is not None:
            del self._slots[gone.model].queue[waiter]

    def _reject_all(self) -> Iterator[Effect]:
        for waiter in list(self._waiters):
            self._forget(waiter)
            yield Reject(waiter, ShuttingDown())
