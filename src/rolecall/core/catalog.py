"""From the name in a request to the entries that can answer to it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rolecall.core.models import ModelEntry
from rolecall.errors import ModelNotFound

ROLE_PREFIX = "role:"
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for: one model, or all the models that play ``role``.

    ``profile`` is the one by whose rules the choice is made, None for the one in force.
    """

    entries: tuple[ModelEntry, ...]
    role: str | None = None
    profile: str | None = None


class Catalog:
    """All entries of a registry by name, alias and role, with the reason why one cannot be served here, if any."""

    def __init__(self, entries: Iterable[ModelEntry] = (), unavailable: Mapping[str, str] | None = None) -> None:
        self.entries = tuple(entries)
        self.unavailable = dict(unavailable or {})
        self._by_id = {id_: entry for entry in self.entries for id_ in entry.ids}
        self._named = {id_: Target((entry,)) for id_, entry in self._by_id.items()}
        self.roles = tuple(sorted({role for entry in self.entries for role in entry.priorities}))
        self._playing = {
            role: Target(tuple(entry for entry in self.entries if role in entry.priorities), role)
            for role in self.roles
        }

    def listed(self, *, include_non_installed: bool = False) -> tuple[ModelEntry, ...]:
        """Return the entries that ``GET /v1/models`` shows."""
        return tuple(e for e in self.entries if include_non_installed or e.name not in self.unavailable)

    def get(self, id_: str) -> ModelEntry:
        """Return the entry of a name or alias; raises ``ModelNotFound`` with the nearest names."""
        entry = self._by_id.get(id_)
        if entry is None:
            raise self._unknown(id_)
        return entry

    def _unknown(self, name: str) -> ModelNotFound:
        near = self._nearest(name)
        listed = ", ".join(entry.name for entry in self.listed()[:_MOST_NAMES])
        known = "" if near or not listed else f" There are: {listed}."
        return ModelNotFound(f"The model {name[:200]!r} does not exist.{known}", nearest=near)

    def resolve(self, name: str) -> Target:
        """Return what ``name``, an alias, ``role:x`` or ``role:x@profile`` stands for; raises ``ModelNotFound``."""
        if (named := self._named.get(name)) is not None:
            return named
        if name[: len(ROLE_PREFIX)].lower() != ROLE_PREFIX:
            raise self._unknown(name)
        role, at, profile = name[len(ROLE_PREFIX) :].rpartition("@")
        if not at or role_name(f"{role}@{profile}") in self.roles:
            return self.role(role + at + profile)
        return replace(self.role(role), profile=profile.strip())

    def role(self, role: str) -> Target:
        """Return all entries that play ``role``, installed or not; raises ``ModelNotFound`` if none does."""
        wanted = role_name(role)
        target = self._playing.get(wanted)
        if target is None:
            known = f" Known roles: {', '.join(self.roles)}." if self.roles else " The registry has no roles."
            near = [ROLE_PREFIX + name for name in difflib.get_close_matches(wanted[:200], self.roles, n=1)]
            raise ModelNotFound(f"No model plays the role {wanted[:200]!r}.{known}", nearest=near)
        return target

    def _nearest(self, id_: str) -> list[str]:
        names = {each.lower(): each for entry in self.listed() for each in entry.ids}
        names |= {ROLE_PREFIX + role: ROLE_PREFIX + role for role in self.roles}
        return [names[near] for near in difflib.get_close_matches(id_.lower()[:200], names, n=3, cutoff=0.5)]


def role_name(word: str) -> str:
    """Return a role as it stands in the entries: roles are asked for in any case."""
    return word.strip().lower()
