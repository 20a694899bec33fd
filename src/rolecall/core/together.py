"""Which models can be loaded at the same time: a first answer, while nothing is loaded and nobody waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rolecall.core.events import Spec
from rolecall.core.vram import Device, Ledger, Placement, placements


@dataclass(frozen=True, slots=True)
class Tenant:
    """A model that wants room: MB over all its cards, over how many it may lie, and on which (none named: any).

    One whose MB nobody knows (None) wants all that there is.
    """

    name: str
    mb: int | None
    spread: Sequence[int] = (1,)
    devices: Sequence[str] = ()


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
    guests = tuple(spec.name for spec in specs if not spec.managed)
    left = [Tenant(spec.name, spec.footprint_mb, spec.spread, spec.devices) for spec in specs if spec.managed]
    made: list[Company] = []
    while placed := settled(Ledger(devices, budget_mb, max_models), left):
        made.append(Company(tuple(placed), placed))
        left = [tenant for tenant in left if tenant.name not in placed]
    if guests:
        first = made[0] if made else Company(())
        made[:1] = [Company((*guests, *first.names), first.placements)]
    return made


def settled(ledger: Ledger, tenants: Iterable[Tenant]) -> dict[str, Placement]:
    """Reserve room for each that still finds some, in their order; return where those lie."""
    return {tenant.name: placement for tenant in tenants if (placement := _settle(ledger, tenant))}


def _settle(ledger: Ledger, tenant: Tenant) -> Placement:
    """Reserve room for a model, on the devices that are fullest after it; an empty placement if there is none."""
    possible = placements(ledger, tenant.mb, tenant.spread, tenant.devices)
    fitting = [placement for placement in possible if not ledger.lack(placement)]
    if not fitting:
        return ()
    best = min(fitting, key=lambda placement: sum(ledger.room_mb(share.device) for share in placement))
    ledger.reserve(tenant.name, best)
    return best
