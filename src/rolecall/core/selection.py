"""Which model answers: one pure function behind requests, ``select_by_role`` and ``rolecall select --explain``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import attrgetter, itemgetter
from typing import Literal

from rolecall.core.models import ModelEntry
from rolecall.core.wording import spoken
from rolecall.errors import ModelNotFound, ModelTooLarge, NoModelForRole, RolecallError, UnsupportedInput

Bias = Literal["vram_efficient", "balanced", "quality"]
Policy = Literal["adaptive", "priority"]
Why = Literal["other_role", "excluded", "unavailable", "capability", "too_large"]
_Order = tuple[float, int, float, str]


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for: a role, or the one model that was named (``role`` is then None).

    ``profile`` is the one by whose rules a role chooses, None for the one in force.
    """

    role: str | None = None
    needs: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    include_non_installed: bool = False
    profile: str | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Hash it once: the scheduler looks up by it what it chose before."""
        asked = self.role, self.needs, self.exclude, self.include_non_installed, self.profile
        object.__setattr__(self, "_hash", hash(asked))

    def __hash__(self) -> int:
        """Return the hash of what is asked for."""
        return self._hash


@dataclass(frozen=True, slots=True)
class RolePolicy:
    """How a role chooses: ``priority`` always takes the best, ``adaptive`` may spare a swap.

    ``quality_tolerance`` is how many priority points a model that is loaded, or being loaded, may be worse by and still
    be taken instead of a swap; 0 allows for ties only.
    """

    policy: Policy = "adaptive"
    quality_tolerance: float = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What selection looks at in the profile and the settings. ``limit_mb`` is the most one model may ever hold.

    ``roles`` has the roles with a policy of their own; ``tolerance`` and ``policy`` hold for the others.
    """

    limit_mb: int
    preferred_quantizations: tuple[str, ...] = ()
    bias: Bias = "balanced"
    tolerance: float = 0
    policy: Policy = "adaptive"
    roles: Mapping[str, RolePolicy] = field(default_factory=dict)

    def policy_for(self, role: str) -> RolePolicy:
        """Return the policy of a role."""
        return self.roles.get(role) or RolePolicy(self.policy, self.tolerance)


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
    swap_s: float | None = None
    """How long its load is expected to take, where it ``costs_swap``."""

    @property
    def name(self) -> str:
        """The entry's name."""
        return self.entry.name

    def priority(self, role: str | None) -> float:
        """Return 0-100 for the role; 0 where no role is asked for."""
        return self.entry.priorities[role] if role else 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that cannot be taken, and why, in words; ``missing`` are the capabilities that it lacks."""

    name: str
    why: Why
    reason: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """All that could serve, best first; all that could not, with reasons; why the first is first.

    ``out_of_memory`` are better ones that could serve if they had not run out of memory a moment ago.
    """

    demand: Demand
    ranked: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    reason: str
    out_of_memory: tuple[str, ...] = ()

    def best(self) -> Candidate:
        """Return the choice.

        Raises ``NoModelForRole`` (404), ``UnsupportedInput`` (400), ``ModelTooLarge`` (400) or ``ModelNotFound`` (404).
        """
        if not self.ranked:
            raise _refusal(self)
        return self.ranked[0]


def select(demand: Demand, candidates: Iterable[Candidate], rules: Rules) -> Selection:
    """Rank ``candidates`` for ``demand`` (design §4); the order in which they come never matters."""
    usable: list[tuple[_Order, Candidate]] = []
    rejected: list[Rejected] = []
    role, places = demand.role, _places(rules.preferred_quantizations)
    for candidate in candidates:
        priority = 0 if role is None else candidate.entry.priorities.get(role)
        if priority is None:
            rejected.append(Rejected(candidate.name, "other_role", f"does not play the role {role!r}"))
        elif problem := _problem(demand, candidate, rules.limit_mb):
            rejected.append(problem)
        else:
            usable.append((_order(candidate, priority, rules.bias, places), candidate))
    usable.sort(key=itemgetter(0))
    rejected.sort(key=attrgetter("name"))
    ranked = [candidate for _, candidate in usable]
    reason = _spare_a_swap(ranked, role, rules)
    return Selection(demand, tuple(ranked), tuple(rejected), reason)


def check_able(demand: Demand, entries: Iterable[ModelEntry]) -> None:
    """Raise ``UnsupportedInput`` (400) if no entry has what is asked for, whatever this machine can hold of them."""
    select(demand, map(Candidate, entries), Rules(limit_mb=sys.maxsize)).best()


def _problem(demand: Demand, candidate: Candidate, limit_mb: int) -> Rejected | None:
    entry, mb, name = candidate.entry, candidate.footprint_mb, candidate.name
    if demand.exclude and not demand.exclude.isdisjoint(entry.ids):
        return Rejected(name, "excluded", "excluded by the request")
    if candidate.unavailable is not None and not demand.include_non_installed:
        return Rejected(name, "unavailable", candidate.unavailable)
    if demand.needs and (missing := tuple(sorted(demand.needs - entry.all_capabilities))):
        return Rejected(name, "capability", f"lacks {', '.join(missing)}", missing)
    if mb is not None and mb > limit_mb:
        more = f"needs {mb} MB, {mb - limit_mb} MB more than the {limit_mb} MB it may use"
        return Rejected(name, "too_large", more)
    return None


def _order(candidate: Candidate, priority: float, bias: Bias, places: Mapping[str, int]) -> _Order:
    place = places.get(_spelled(candidate.entry.quantization or ""), len(places))
    return -priority, place, _bias(candidate, bias), candidate.name


def _places(preferred: Sequence[str]) -> dict[str, int]:
    spelled = dict.fromkeys(map(_spelled, preferred))
    return {quantization: place for place, quantization in enumerate(spelled)}


def _spelled(quantization: str) -> str:
    return quantization.lower().replace("-", "_")


def _bias(candidate: Candidate, bias: Bias) -> float:
    if bias == "balanced":
        return 0 if candidate.loaded else 1 if candidate.coming else 2
    if candidate.footprint_mb is None:
        return float("inf")
    return candidate.footprint_mb if bias == "vram_efficient" else -candidate.footprint_mb


def _spare_a_swap(ranked: list[Candidate], role: str | None, rules: Rules) -> str:
    """Move to the front what spares the swap that the best would cost, if anything may; say why the first is first."""
    if not ranked:
        return "no candidate"
    if role is None:
        return "named by the request"
    best, rule = ranked[0], rules.policy_for(role)
    chosen = _near(ranked, role, rule.quality_tolerance) if best.costs_swap and rule.policy == "adaptive" else None
    if chosen is None:
        return f"highest priority that fits{_why_swap(best, role, rule)}"
    ranked.insert(0, ranked.pop(next(place for place, each in enumerate(ranked) if each is chosen)))
    return (
        f"{best.name} {best.priority(role):g} would need {_swap(best)}; {chosen.name} at {chosen.priority(role):g} is "
        f"{'loaded' if chosen.loaded else 'being loaded'}; tolerance {rule.quality_tolerance:g}"
    )


def _swap(candidate: Candidate) -> str:
    return "a swap" if candidate.swap_s is None else f"a swap of {spoken(candidate.swap_s)}"


def _why_swap(best: Candidate, role: str, rule: RolePolicy) -> str:
    """Return why the best is worth a swap, as the end of a sentence; nothing where it costs none."""
    if not best.costs_swap:
        return ""
    if rule.policy == "priority":
        return f"; it needs {_swap(best)}, and the role always takes the best"
    near = f"{rule.quality_tolerance:g} of its {best.priority(role):g}"
    return f"; it needs {_swap(best)}, as nothing loaded is within {near}"


def _near(ranked: Sequence[Candidate], role: str, tolerance: float) -> Candidate | None:
    """Return the best within the tolerance that is loaded; if there is none, the best that is being loaded."""
    floor = ranked[0].priority(role) - tolerance
    near = takewhile(lambda candidate: candidate.priority(role) >= floor, ranked)
    paid = (candidate for candidate in near if candidate.loaded or candidate.coming)
    return min(paid, key=lambda candidate: not candidate.loaded, default=None)


def _refusal(selection: Selection) -> RolecallError:
    demand, rejected = selection.demand, selection.rejected
    if demand.role is not None:
        return _role_refusal(demand.role, [r for r in rejected if r.why != "other_role"])
    if not rejected:
        return ModelNotFound("The model does not exist.")
    named = rejected[0]
    message = f"The model {named.name!r} cannot serve this request: {named.reason}."
    if named.why == "capability":
        return _unsupported(message, named.missing)
    if named.why == "too_large":
        return ModelTooLarge(message, param="model")
    return ModelNotFound(message)


def _role_refusal(role: str, rejected: Sequence[Rejected]) -> RolecallError:
    reasons = "; ".join(f"{r.name}: {r.reason}" for r in rejected) or "No model plays it"
    message = f"No model of the role {role!r} can serve this request. {reasons}."
    if {r.why for r in rejected if r.why != "unavailable"} == {"capability"}:
        return _unsupported(message, [word for r in rejected for word in r.missing])
    return NoModelForRole(message, param="model")


def _unsupported(message: str, missing: Sequence[str]) -> UnsupportedInput:
    """Images are the fault of the messages; whatever else is missing, another model has it."""
    param = "messages" if set(missing) == {"vision"} else "model"
    return UnsupportedInput(f"{message} GET /v1/models lists what each model can do.", param=param)
