"""What models would need with other sizes or on other cards, by the figures that the scheduler goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rolecall.backends.base import Backend
from rolecall.backends.smaller import with_context, with_slots
from rolecall.core.capacity import Cards, beside, largest_context
from rolecall.core.footprint import Estimate
from rolecall.core.learning import Footprint
from rolecall.core.models import ModelEntry
from rolecall.core.together import Tenant
from rolecall.runtime.footprints import Footprints, Gpu


@dataclass(frozen=True, slots=True)
class Fit:
    """What one model needs, and what the cards leave of it.

    ``needs`` is what the scheduler would reserve, ``parts`` what its files say. ``largest_tokens`` is the longest
    context with which it fits, None if there is none or it is not known; ``own_tokens`` the one it was trained for.
    """

    entry: ModelEntry
    backend: str
    needs: Footprint
    parts: Estimate | None
    slots: int
    room_mb: int
    tenant: Tenant | None
    largest_tokens: int | None
    own_tokens: int | None
    problem: str | None

    @property
    def fits(self) -> bool | None:
        """Whether it fits if it is alone; None where it is not known what it needs."""
        return None if self.needs.mb is None else self.needs.mb <= self.room_mb


@dataclass(frozen=True, slots=True)
class Fitting:
    """Fits models on cards; it looks at their files. ``device`` returns the device that an entry's ``gpus`` mean."""

    footprints: Footprints
    backend_for: Callable[[ModelEntry], Backend]
    cards: Cards
    device: Callable[[int | str], str] | None = None

    def of(self, entry: ModelEntry, context: int | None = None, slots: int | None = None) -> Fit:
        """Return the fit of an entry, with this context in tokens and so many requests at once if they are given."""
        entry = entry if context is None else with_context(entry, context)
        entry = entry if slots is None else with_slots(entry, slots)
        backend = self.backend_for(entry)
        needs, parts = self.footprints.of(entry), self.footprints.computed(entry) if backend.managed else None
        spread = backend.spread(entry).over(len(self.cards.devices))
        room_mb = self.cards.room_mb(spread)
        devices = tuple(map(self.device, entry.gpus)) if self.device else ()
        own = self.footprints.context_tokens(entry)
        return Fit(
            entry=entry,
            backend=backend.name,
            needs=needs,
            parts=parts,
            slots=backend.parallel(entry),
            room_mb=room_mb,
            tenant=None if needs.mb is None or not backend.managed else Tenant(entry.name, needs.mb, spread, devices),
            largest_tokens=self._largest(entry, needs, parts, room_mb, own) if parts else None,
            own_tokens=own,
            problem=self.footprints.files.problem(entry, backend) if backend.managed and parts is None else None,
        )

    def _largest(
        self, entry: ModelEntry, needs: Footprint, parts: Estimate, room_mb: int, own: int | None
    ) -> int | None:
        """What loads have taught of the model with its present context holds for another one as well."""
        takes_share = self.backend_for(entry).takes_share
        more_mb = needs.mb - parts.mb if needs.source == "learnt" and needs.mb is not None else 0

        def need_mb(tokens: int) -> int:
            found = self.footprints.computed(with_context(entry, tokens))
            return room_mb + 1 if found is None else (found.least_mb if takes_share else found.mb) + more_mb

        return largest_context(need_mb, room_mb, own or 0)


def beside_each(cards: Cards, fits: Sequence[Fit]) -> dict[str, list[str]]:
    """Return for each model that fits which of the others fits beside it."""
    tenants = [fit.tenant for fit in fits if fit.tenant is not None and fit.fits]
    return {t.name: beside(cards, t, [other for other in tenants if other is not t]) for t in tenants}


def imagined(footprints: Footprints, cards: Cards) -> Footprints:
    """Return what is known of models for cards that need not be here: what was learnt on others does not hold."""
    gpus = {d.id: Gpu(d.id, d.capacity_mb) for d in cards.devices} if cards.are_gpus else {}
    return replace(footprints, gpus=gpus)
