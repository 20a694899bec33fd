"""Who holds how much memory on which device, and who has to go so that one more model fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

HOST = "host"
"""The one device of a machine without GPUs: models live in host RAM."""

_MOST_OPTIONS = 70
"""Sets of GPUs that are compared for one model: all of eight cards; beyond that only those of the emptiest ones."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its NVML UUID, or ``HOST``.

    ``capacity_mb`` is what models may take of it, ``total_mb`` the whole card, ``index`` NVML's.
    """

    id: str
    capacity_mb: int
    total_mb: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What a model is given of one device, in MB; ``total_mb`` is the whole card."""

    device: str
    mb: int
    total_mb: int


Placement = tuple[Share, ...]
"""Where a model lies: one share, or several of the same size. Empty for an engine that takes no memory of ours."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A loaded model that could make room.

    ``cost`` is what its going is likely to cost: seconds until it is back, times how likely it is wanted again.
    ``keeps_mb`` stays on each of its devices when it is only put to sleep; it then still counts as no loaded model.
    """

    name: str
    cost: float
    keeps_mb: int = 0


@dataclass(slots=True)
class Lack:
    """What is missing for a placement: MB by device, MB of the budget over all devices, places for models."""

    by_device: dict[str, int] = field(default_factory=dict)
    budget_mb: int = 0
    places: int = 0

    def __bool__(self) -> bool:
        return self.budget_mb > 0 or self.places > 0 or any(mb > 0 for mb in self.by_device.values())


class Ledger:
    """Reservations by device, against each device's capacity, a budget over all of them, and a number of models.

    A reservation stands from before the engine starts until its memory is free again on the device: `linger` while its
    process is gone but the driver still shows it, `free` at the end. Whatever the order of events, no reservation is
    made beyond what is left; only what was measured, or foreign use that grew, can make the sum larger.
    """

    def __init__(self, devices: Iterable[Device] = (), budget_mb: int = 0, max_models: int = 0) -> None:
        self.configure(devices, budget_mb, max_models)
        self.foreign_mb: Mapping[str, int] = {}
        self.promised: list[Placement] = []
        """Places that are being cleared: nobody else may take the budget and the place for a model that they need."""
        self.staying: Collection[str] = ()
        """Models that make room for nobody: the pinned ones that are loaded."""
        self._held: dict[str, dict[str, int]] = {}
        self._asleep: set[str] = set()
        self._lingering: dict[str, dict[str, int]] = {}
        self._used_on: dict[str, int] = {}
        self._used_mb = 0

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {sum(on.values())}" for name, on in self._held.items()) or "nothing"
        return f"<Ledger {self.used_mb}/{self.budget_mb} MB, {self.loaded}/{self.max_models} models: {held}>"

    def configure(self, devices: Iterable[Device], budget_mb: int, max_models: int) -> None:
        """Take in what there is to hold; reservations stand."""
        self.devices = {device.id: device for device in devices}
        self.budget_mb = budget_mb
        self.max_models = max_models

    @property
    def used_mb(self) -> int:
        """MB reserved in all, with what lingers."""
        return self._used_mb

    @property
    def loaded(self) -> int:
        """Models that hold a place: those that sleep or linger don't."""
        return len(self._held) - len(self._asleep)

    def used_on(self, device: str) -> int:
        """MB reserved on one device, with what lingers."""
        return self._used_on.get(device, 0)

    def held_mb(self, name: str) -> int:
        """MB reserved for one model, over its devices."""
        return sum(self.held_on(name).values())

    def held_on(self, name: str) -> Mapping[str, int]:
        """MB reserved for one model, by device."""
        return self._held.get(name, {})

    def lingers(self, name: str) -> bool:
        """Whether memory of an earlier engine of the model is not free yet."""
        return name in self._lingering

    def usable_mb(self, device: str) -> int:
        """What models may take of a device when nobody else holds anything: never more than the budget over all."""
        return min(self.devices[device].capacity_mb, self.budget_mb)

    def open_mb(self, device: str) -> int:
        """What models may hold of a device at all now: its capacity less foreign use beyond what is kept free."""
        known = self.devices[device]
        kept_free_mb = max(0, known.total_mb - known.capacity_mb)
        return known.capacity_mb - max(0, self.foreign_mb.get(device, 0) - kept_free_mb)

    def room_mb(self, device: str) -> int:
        """MB that nobody has; negative after the capacity was lowered, or foreign use grew, under running models."""
        return self.open_mb(device) - self.used_on(device)

    @property
    def is_pressed(self) -> bool:
        """Whether others hold so much of a device that models may hold less of it than its capacity."""
        return bool(self.foreign_mb) and any(
            self.open_mb(device) < known.capacity_mb for device, known in self.devices.items()
        )

    def all_of(self, cards: Sequence[Device], least_mb: int) -> Placement:
        """Return all that one model may have of these cards, beside what stays; no less than ``least_mb`` together."""
        staying_mb = {name: self._held[name] for name in self.staying if name in self._held}
        left_mb = self.budget_mb - sum(sum(on.values()) for on in staying_mb.values())
        shares = []
        for card in cards:
            taken_mb = sum(on.get(card.id, 0) for on in staying_mb.values())
            least_part_mb = min(card.capacity_mb, self.budget_mb // len(cards), max(1, least_mb // len(cards)))
            part_mb = min(self.open_mb(card.id) - taken_mb, left_mb // len(cards))
            shares.append(Share(card.id, max(least_part_mb, part_mb), card.total_mb))
        return tuple(shares)

    def lack(self, placement: Placement, without: Iterable[Holding] = ()) -> Lack:
        """Return what is missing for a further model once the models ``without`` are gone or asleep."""
        going = [(holding, self._frees(holding)) for holding in without]
        need_mb = sum(share.mb for share in placement)
        need_mb += sum(share.mb for promise in self.promised for share in promise)
        places = self.loaded + len(self.promised) + 1 - self.max_models
        lack = Lack(budget_mb=need_mb + self.used_mb - self.budget_mb, places=places)
        for share in placement:
            lack.by_device[share.device] = share.mb - self.room_mb(share.device)
        for holding, frees in going:
            lack.budget_mb -= sum(frees.values())
            lack.places -= holding.name in self._held and holding.name not in self._asleep
            for device, mb in frees.items():
                if device in lack.by_device:
                    lack.by_device[device] -= mb
        return lack

    def reserve(self, name: str, placement: Placement) -> None:
        """Reserve a placement for a model that is about to start or to wake; ``ValueError`` if there is no room."""
        if name in self._held or name in self._lingering or self.lack(placement):
            raise ValueError(f"no room for {name!r} on {placement} in {self!r}")
        self._held[name] = {share.device: share.mb for share in placement}
        self._sum_up()

    def correct(self, name: str, held_mb: Mapping[str, int]) -> None:
        """Take in what a model really holds by device, be it more or less than was reserved."""
        self._held[name] = dict(held_mb)
        self._sum_up()

    def doze(self, name: str, residual_mb: int) -> None:
        """Keep only ``residual_mb`` on each of its devices for a model that fell asleep; it has no place any more."""
        self._held[name] = {device: min(mb, residual_mb) for device, mb in self._held[name].items()}
        self._asleep.add(name)
        self._sum_up()

    def rouse(self, name: str, placement: Placement) -> None:
        """Reserve all of its memory again for a sleeping model; raises ``ValueError`` if there is no room."""
        residual = self._held.pop(name)
        self._asleep.discard(name)
        self._sum_up()
        try:
            self.reserve(name, placement)
        except ValueError:
            self._held[name] = residual
            self._asleep.add(name)
            self._sum_up()
            raise

    def linger(self, name: str) -> None:
        """Note that a model's process is gone, and its memory perhaps not yet."""
        self._asleep.discard(name)
        if (held := self._held.pop(name, None)) is not None:
            self._lingering[name] = held

    def free(self, name: str) -> None:
        """Give back what lingered; nothing happens if nothing did."""
        self._lingering.pop(name, None)
        self._sum_up()

    def _sum_up(self) -> None:
        """Keep the sums: they are asked for far more often than a reservation changes."""
        self._used_on = {}
        for on in itertools.chain(self._held.values(), self._lingering.values()):
            for device, mb in on.items():
                self._used_on[device] = self._used_on.get(device, 0) + mb
        self._used_mb = sum(self._used_on.values())

    def _frees(self, holding: Holding) -> dict[str, int]:
        """Return what is free by device once the holding is gone, or asleep; of a lingering one all."""
        on = self._held.get(holding.name) or self._lingering.get(holding.name, {})
        return {device: max(0, mb - holding.keeps_mb) for device, mb in on.items()}


def placements(
    ledger: Ledger, mb: int | None, spread: Sequence[int], devices: Sequence[str], least_mb: int = 1
) -> list[Placement]:
    """Return where a model of ``mb`` may lie, whatever is loaded now, but for the ``ledger.staying`` models.

    The first number of ``spread`` for which the cards are large enough is taken; equal parts on each. ``mb`` None is a
    model of unknown size, which gets all that models may hold now of as many cards as it asks for, and no less than
    ``least_mb``. ``devices`` restricts the choice if it names any.
    """
    allowed = [device for device in ledger.devices.values() if not devices or device.id in devices]
    if mb is not None and mb > ledger.budget_mb:
        return []
    for count in spread:
        part_mb = ledger.budget_mb // count if mb is None else min(-(-mb // count), ledger.budget_mb // count)
        large = [device for device in allowed if mb is None or device.capacity_mb >= part_mb]
        if len(large) >= count:
            if math.comb(len(large), count) > _MOST_OPTIONS:
                large = sorted(large, key=lambda device: -ledger.room_mb(device.id))[: count + 2]
            sets = itertools.combinations(large, count)
            if mb is None:
                return [ledger.all_of(chosen, least_mb) for chosen in sets]
            return [tuple(Share(device.id, part_mb, device.total_mb) for device in chosen) for chosen in sets]
    return []


def plan_eviction(
    ledger: Ledger, placement: Placement, candidates: Iterable[Holding], leaving: Sequence[Holding] = ()
) -> list[Holding] | None:
    """Return the models that have to go so that the placement fits: the cheapest per MB first, none in vain.

    ``leaving`` are on their way out and still hold their memory. None when even all the candidates would not do; empty
    when nothing more has to go.
    """
    lack = ledger.lack(placement, leaving)
    if not lack:
        return []
    useful = {holding: mb for holding in candidates if (mb := _use(ledger, lack, holding))}
    going: list[Holding] = []
    for holding in sorted(useful, key=lambda h: (h.cost / useful[h], h.cost, h.name)):
        going.append(holding)
        if not ledger.lack(placement, [*leaving, *going]):
            break
    else:
        return None
    for holding in sorted(going, key=lambda h: (-h.cost, h.name)):  # one is needless once a larger one goes
        rest = [other for other in going if other is not holding]
        if not ledger.lack(placement, [*leaving, *rest]):
            going = rest
    single = min((h for h in useful if not ledger.lack(placement, [*leaving, h])), key=lambda h: h.cost, default=None)
    return [single] if single is not None and single.cost < sum(holding.cost for holding in going) else going


def _use(ledger: Ledger, lack: Lack, holding: Holding) -> int:
    """Return how many of the missing MB the holding frees; at least 1 where it frees a missing place."""
    frees = ledger._frees(holding)  # noqa: SLF001 - one module
    mb = sum(min(mb, max(0, lack.by_device.get(device, 0))) for device, mb in frees.items())
    if lack.budget_mb > 0:
        mb = max(mb, min(sum(frees.values()), lack.budget_mb))
    return max(mb, int(lack.places > 0))
