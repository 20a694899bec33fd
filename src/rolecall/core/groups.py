"""Groups of models that are used together, and how the memory of one is parted among its models."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

Allocation = Literal["balanced", "priority", "custom"]
Startup = Literal["parallel", "serial"]

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)]
_ROUNDING = 1e-9


class AllocationError(ValueError):
    """The models of a group do not fit together; the message names the group, the models, and the MB that lack."""


class ModelGroup(BaseModel):
    """Models that are used together: a ``[[groups]]`` or ``[[profiles.NAME.groups]]`` table of ``profiles.toml``.

    The descriptions say what a field holds and complete the message about a wrong value. ``name``, ``models`` and
    ``startup`` are those of ``events.Group``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="a name, not empty")
    models: tuple[Name, ...] = Field(
        min_length=1, description="a list of names or aliases of the registry, one at least, each once"
    )
    allocation: Allocation = Field(default="balanced", description=" | ".join(get_args(Allocation)))
    shares: dict[str, Fraction] = Field(
        default_factory=dict,
        validate_default=True,
        description='a table "model" = fraction for models of the group, each above 0, together at most 1, '
        'where allocation is "custom"',
    )
    startup: Startup = Field(default="serial", description=" | ".join(get_args(Startup)))

    @field_validator("models")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"{twice[0]!r} is there twice")
        return value

    @field_validator("shares")
    @classmethod
    def _shares_of_the_group(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        known, allocation = info.data.get("models"), info.data.get("allocation")
        if allocation == "custom" and not value:
            raise ValueError("a custom allocation has none")
        if value and allocation in ("balanced", "priority"):
            raise ValueError(f"the allocation is {allocation}")
        if strange := sorted(set(value) - set(known or value)):
            raise ValueError(f"{strange[0]!r} is not in models")
        if sum(value.values()) > 1 + _ROUNDING:
            raise ValueError(f"together they are {sum(value.values()):g}")
        return value


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs of a GPU, in MB.

    ``takes_share`` False is an engine of a fixed size (llama.cpp): it gets ``least_mb``. Others (vLLM) take what they
    are given, from ``least_mb`` (weights and the smallest KV cache) up to ``wanted_mb``; None: all they can get.
    """

    least_mb: int
    wanted_mb: int | None = None
    takes_share: bool = True

    def given(self, mb: int) -> int:
        """Return ``mb``, but never less than the least nor more than what is wanted."""
        most_mb = mb if self.wanted_mb is None else min(mb, self.wanted_mb)
        return max(self.least_mb, most_mb) if self.takes_share else self.least_mb


def allocate(group: ModelGroup, needs: Mapping[str, Need], capacity_mb: int) -> dict[str, int]:
    """Return MB by model, for the models of the group that ``needs`` names, together at most ``capacity_mb``.

    - ``balanced``: equal parts of what the models of a fixed size leave, within each one's `Need`. A few MB, fewer
      than there are models, may be left over.
    - ``priority``: in the order of ``group.models`` each gets what it wants, as far as the later ones keep their least.
    - ``custom``: the group's fractions of the capacity, rounded down; a model without one gets its least.

    Raises AllocationError if the models do not fit.
    """
    members = {name: needs[name] for name in group.models if name in needs}
    _check(group, {name: need.least_mb for name, need in members.items()}, capacity_mb)
    if group.allocation == "balanced":
        return _balanced(members, capacity_mb)
    if group.allocation == "priority":
        return _by_priority(members, capacity_mb)
    return _custom(group, members, capacity_mb)


def resolve(groups: Iterable[ModelGroup], name_of: Mapping[str, str]) -> tuple[tuple[ModelGroup, ...], tuple[str, ...]]:
    """Return the groups by the registry's own names, and warnings in words.

    ``name_of`` gives the name for each name and alias of the registry. A model that the registry lacks is left out, as
    is one that stands in an earlier group or twice in one by an alias, and a group of which nothing is left.
    """
    found: list[ModelGroup] = []
    warnings: list[str] = []
    taken: dict[str, str] = {}
    for group in groups:
        names: dict[str, str] = {}
        for model in group.models:
            name = name_of.get(model)
            if name is None:
                warnings.append(f"group {group.name!r}: the registry has no model {model!r}; it is left out")
            elif name in taken:
                warnings.append(f"group {group.name!r}: {model!r} is left out, it is in group {taken[name]!r} already")
            else:
                names[model], taken[name] = name, group.name
        if names:
            shares = {names[model]: share for model, share in group.shares.items() if model in names}
            found.append(group.model_copy(update={"models": tuple(names.values()), "shares": shares}))
    return tuple(found), tuple(warnings)


def clashes(groups: Sequence[ModelGroup]) -> Iterator[str]:
    """Yield what is wrong with groups that hold at the same time: one name for two, a model in two."""
    for one, other in combinations(groups, 2):
        if one.name == other.name:
            yield f"group {one.name!r} is there twice; allowed: each name once in a profile."
        for model in one.models:
            if model in other.models:
                yield f"groups {one.name!r} and {other.name!r} both hold {model!r}; allowed: one group for each model."


def _check(group: ModelGroup, needed_mb: Mapping[str, int], capacity_mb: int) -> None:
    if (lacking_mb := sum(needed_mb.values()) - capacity_mb) > 0:
        each = ", ".join(f"{name} {mb}" for name, mb in needed_mb.items())
        raise AllocationError(
            f"the group {group.name!r} does not fit: {each} MB are {lacking_mb} MB more than the {capacity_mb} MB there"
        )


def _balanced(members: Mapping[str, Need], capacity_mb: int) -> dict[str, int]:
    def at(level_mb: int) -> dict[str, int]:
        return {name: need.given(level_mb) for name, need in members.items()}

    # The highest level at which they still fit; at level 0 each has its least, which fits.
    above = bisect_right(range(capacity_mb + 1), capacity_mb, key=lambda level_mb: sum(at(level_mb).values()))
    return at(max(0, above - 1))


def _by_priority(members: Mapping[str, Need], capacity_mb: int) -> dict[str, int]:
    spare_mb = capacity_mb - sum(need.least_mb for need in members.values())
    given: dict[str, int] = {}
    for name, need in members.items():
        given[name] = need.given(need.least_mb + spare_mb)
        spare_mb -= given[name] - need.least_mb
    return given


def _custom(group: ModelGroup, members: Mapping[str, Need], capacity_mb: int) -> dict[str, int]:
    given: dict[str, int] = {}
    for name, need in members.items():
        share = group.shares.get(name)
        given[name] = need.least_mb
        if share is None:
            continue
        share_mb = int(share * capacity_mb + 1e-6)  # 0.29 of 100 is 29
        if share_mb < need.least_mb:
            raise AllocationError(
                f"the group {group.name!r} does not fit: {name} needs {need.least_mb} MB, "
                f"its share {share:g} of {capacity_mb} MB is {share_mb} MB"
            )
        given[name] = share_mb if need.takes_share else need.least_mb
    _check(group, given, capacity_mb)
    return given
