"""What some cards can hold: the largest context of a model, and which models lie on them together.

The books are those of the scheduler: `vram.Ledger` and `vram.placements` decide here as well, by way of `together`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rolecall.core.footprint import CONTEXT_STEP
from rolecall.core.profiles import RESERVE_MB, Profile
from rolecall.core.together import Tenant, settled
from rolecall.core.vram import HOST, Device, Ledger

MOST_CONTEXT = 2**20
"""Where a model does not say how long its context is."""


@dataclass(frozen=True, slots=True)
class Cards:
    """The devices of a profile and what models may take of them in MB; ``max_models`` may be loaded at once."""

    devices: tuple[Device, ...]
    budget_mb: int
    max_models: int

    @property
    def are_gpus(self) -> bool:
        """Whether there is a GPU; otherwise models lie in host RAM."""
        return all(device.id != HOST for device in self.devices)

    def ledger(self) -> Ledger:
        """Return the books of these cards with nothing on them; for any number of models, memory alone counts."""
        return Ledger(self.devices, self.budget_mb, max_models=2**30)

    def room_mb(self, spread: Iterable[int]) -> int:
        """Return the most that one model may take over one of these numbers of cards."""
        capacities = sorted((device.capacity_mb for device in self.devices), reverse=True)
        counts = [count for count in spread if 0 < count <= len(capacities)]
        return max((min(self.budget_mb, count * capacities[count - 1]) for count in counts), default=0)


def cards_of(profile: Profile) -> Cards:
    """Return the cards that a profile is made for, equal ones of its ``max_vram_mb`` together, wherever they are."""
    each_mb = -(-profile.max_vram_mb // profile.gpu_count)
    devices = [Device(f"card {index}", each_mb, each_mb + RESERVE_MB, index) for index in range(profile.gpu_count)]
    return Cards(tuple(devices), profile.max_vram_mb, profile.max_concurrent_models)


def largest_context(need_mb: Callable[[int], int], room_mb: int, own_tokens: int = 0) -> int | None:
    """Return the longest context (tokens) with which a model needs no more than ``room_mb``; None if none fits.

    ``need_mb`` tells for a context what is needed, which never shrinks with it; ``own_tokens`` is what the model was
    trained for, 0 if it does not say. Steps are of `CONTEXT_STEP`.
    """
    most = own_tokens or MOST_CONTEXT
    if need_mb(most) <= room_mb:
        return most
    low, high = 0, -(-most // CONTEXT_STEP)
    while high - low > 1:
        middle = (low + high) // 2
        if need_mb(middle * CONTEXT_STEP) <= room_mb:
            low = middle
        else:
            high = middle
    return low * CONTEXT_STEP or None


def beside(cards: Cards, first: Tenant, others: Iterable[Tenant]) -> list[str]:
    """Return who of ``others`` fits beside ``first``, each without the others."""
    return [other.name for other in others if len(settled(cards.ledger(), (first, other))) > 1]


def fit_together(cards: Cards, tenants: Sequence[Tenant]) -> list[tuple[str, ...]]:
    """Return sets of models that fit together and to which no other can be added; two models at least.

    For each model one set, to which the others are added in the given order, the best first; a set that comes twice is
    told once.
    """
    found: list[tuple[str, ...]] = []
    for first in tenants:
        placed = settled(cards.ledger(), (first, *(tenant for tenant in tenants if tenant is not first)))
        members = tuple(tenant.name for tenant in tenants if tenant.name in placed)
        if len(members) > 1 and first.name in members and members not in found:
            found.append(members)
    return found
