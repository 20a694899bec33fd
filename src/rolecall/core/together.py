"""Which models can be loaded at the same time: a first answer, while nothing is loaded and nobody waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rolecall.core.events import Spec
from rolecall.core.vram import Device, Ledger, Placement, placements


@dataclass(frozen=True, slots=True)
class Company:
    """Models that are loaded together, and where each lies; ``used_mb`` is over all devices."""

    names: tuple[str, ...]
    placements: dict[str, Placement] = field(default_factory=dict)

    @property
    def used_mb(self) -> int:
        """The memory of all of them, MB."""
        return sum(share.mb for placement in self.placements.values() for share in placement)


def companies(specs: Sequence[Spec], devices: Sequence[Device], budget_mb: int, max_models: int) -> list[Company]:
    """Return the models in companies that fit the machine, each in the first one that has room for it, in their order.

    One company: all fit at once. Two and more take turns. A model that others run takes no room and is in the first
    company; one that fits nowhere is in none. A model of unknown size has the machine to itself.
    """
    ledgers: list[tuple[Ledger, Company]] = []
    guests = tuple(spec.name for spec in specs if not spec.managed)
    for spec in (each for each in specs if each.managed):
        for ledger, company in ledgers:
            if placement := _place(ledger, spec):
                company.placements[spec.name] = placement
                break
        else:
            ledger = Ledger(devices, budget_mb, max_models)
            if placement := _place(ledger, spec):
                ledgers.append((ledger, Company((), {spec.name: placement})))
    made = [Company(tuple(company.placements), company.placements) for _, company in ledgers]
    if guests:
        first = made[0] if made else Company(())
        made[:1] = [Company((*guests, *first.names), first.placements)]
    return made


def _place(ledger: Ledger, spec: Spec) -> Placement:
    return settle(ledger, spec.name, spec.footprint_mb, spec.spread, spec.devices)


def settle(ledger: Ledger, name: str, mb: int | None, spread: Sequence[int], devices: Sequence[str] = ()) -> Placement:
    """Reserve room for a model, on the devices that are fullest after it; an empty placement if there is none."""
    fitting = [placement for placement in placements(ledger, mb, spread, devices) if not ledger.lack(placement)]
    if not fitting:
        return ()
    best = min(fitting, key=lambda placement: sum(ledger.room_mb(share.device) for share in placement))
    ledger.reserve(name, best)
    return best
