"""Which model answers: one pure function behind requests, ``select_by_role`` and ``rolecall select --explain``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rolecall.core.models import ModelEntry
from rolecall.errors import ModelNotFound, ModelTooLarge, NoModelForRole, RolecallError, UnsupportedInput

Bias = Literal["vram_efficient", "balanced", "quality"]
Why = Literal["other_role", "excluded", "unavailable", "capability", "too_large"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for: a role, or the one model that was named (``role`` is then None)."""

    role: str | None = None
    needs: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    include_non_installed: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The part of a profile that selection looks at. ``limit_mb`` is the most one model may ever hold."""

    limit_mb: int
    preferred_quantizations: tuple[str, ...] = ()
    bias: Bias = "balanced"
    tolerance: float = 0
    """Priority points that a loaded model may be worse by and still be taken instead of a swap."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry, with what is known about it on this machine at this moment."""

    entry: ModelEntry
    footprint_mb: int | None = None
    unavailable: str | None = None
    loaded: bool = False
    costs_swap: bool = False
    coming: bool = False
    """Whether it is being started or woken: its load is paid already."""

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.entry.name

    def priority(self, role: str | None) -> float:
        """Return 0-100 for the role; 0 where no role is asked for."""
        return self.entry.priorities[role] if role else 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that cannot be taken, and why, in words."""

    name: str
    why: Why
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """All that could serve, best first; all that could not, with reasons; why the first is first."""

    demand: Demand
    ranked: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    reason: str

    def best(self) -> Candidate:
        """Return the choice.

        Raises ``NoModelForRole`` (404), ``UnsupportedInput`` (400), ``ModelTooLarge`` (400) or ``ModelNotFound`` (404).
        """
        if not self.ranked:
            raise _refusal(self)
        return self.ranked[0]


def select(demand: Demand, candidates: Iterable[Candidate], rules: Rules) -> Selection:
    """Rank ``candidates`` for ``demand`` (design §4); the order in which they come never matters."""
    usable: list[Candidate] = []
    rejected: list[Rejected] = []
    for candidate in sorted(candidates, key=lambda c: c.name):
        problem = _problem(demand, candidate, rules)
        if problem is None:
            usable.append(candidate)
        else:
            rejected.append(Rejected(candidate.name, *problem))
    usable.sort(key=lambda candidate: _order(candidate, demand.role, rules))
    reason = _take_loaded(usable, demand, rules)
    return Selection(demand, tuple(usable), tuple(rejected), reason)


def _problem(demand: Demand, candidate: Candidate, rules: Rules) -> tuple[Why, str] | None:
    entry, mb = candidate.entry, candidate.footprint_mb
    if demand.role is not None and demand.role not in entry.priorities:
        return "other_role", f"does not play the role {demand.role!r}"
    if not demand.exclude.isdisjoint(entry.ids):
        return "excluded", "excluded by the request"
    if candidate.unavailable is not None and not demand.include_non_installed:
        return "unavailable", candidate.unavailable
    missing = sorted(demand.needs - entry.all_capabilities)
    if missing:
        return "capability", f"lacks {', '.join(missing)}"
    if mb is not None and mb > rules.limit_mb:
        return "too_large", f"needs {mb} MB, {mb - rules.limit_mb} MB more than the {rules.limit_mb} MB it may use"
    return None


def _order(candidate: Candidate, role: str | None, rules: Rules) -> tuple[float, int, float, str]:
    quantization = _spelled(candidate.entry.quantization or "")
    preferred = [_spelled(name) for name in rules.preferred_quantizations]
    place = preferred.index(quantization) if quantization in preferred else len(preferred)
    return -candidate.priority(role), place, _bias(candidate, rules.bias), candidate.name


def _spelled(quantization: str) -> str:
    return quantization.lower().replace("-", "_")


def _bias(candidate: Candidate, bias: Bias) -> float:
    if bias == "balanced":
        return 0 if candidate.loaded else 1
    if candidate.footprint_mb is None:
        return float("inf")
    return candidate.footprint_mb if bias == "vram_efficient" else -candidate.footprint_mb


def _take_loaded(ranked: list[Candidate], demand: Demand, rules: Rules) -> str:
    """Move the best loaded candidate within the tolerance to the front if the best one would cost a swap."""
    if not ranked:
        return "no candidate"
    best = ranked[0]
    floor = best.priority(demand.role) - rules.tolerance
    loaded = next((c for c in ranked if c.loaded and c.priority(demand.role) >= floor), None)
    if best.costs_swap and loaded is not None:
        ranked.remove(loaded)
        ranked.insert(0, loaded)
        return f"loaded, and within {rules.tolerance:g} of {best.name!r}, which would cost a swap"
    return "named by the request" if demand.role is None else "highest priority that fits"


def _refusal(selection: Selection) -> RolecallError:
    demand, rejected = selection.demand, selection.rejected
    if demand.role is not None:
        return _role_refusal(demand.role, [r for r in rejected if r.why != "other_role"])
    if not rejected:
        return ModelNotFound("The model does not exist.")
    named = rejected[0]
    message = f"The model {named.name!r} cannot serve this request: {named.reason}."
    if named.why == "capability":
        return UnsupportedInput(message, param="messages")
    if named.why == "too_large":
        return ModelTooLarge(message, param="model")
    return ModelNotFound(message)


def _role_refusal(role: str, rejected: Sequence[Rejected]) -> RolecallError:
    reasons = "; ".join(f"{r.name}: {r.reason}" for r in rejected) or "No model plays it"
    message = f"No model of the role {role!r} can serve this request. {reasons}."
    if {r.why for r in rejected if r.why != "unavailable"} == {"capability"}:
        return UnsupportedInput(message, param="messages")
    return NoModelForRole(message, param="model")
