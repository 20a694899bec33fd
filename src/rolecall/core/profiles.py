"""Deployment profiles: what a class of machine may hold, which one fits the GPUs at hand, the budget, the devices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from rolecall.core.groups import ModelGroup, clashes
from rolecall.core.vram import HOST, Device
from rolecall.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

T = TypeVar("T")

RESERVE_MB = 2048
"""Left on each GPU to the desktop, the driver and CUDA; left to the system where models live in host RAM."""

Strategy = Literal["load_unload", "concurrent_limited", "tensor_parallel_or_distributed", "concurrent_full"]
Bias = Literal["vram_efficient", "balanced", "quality"]
Source = Literal["auto", "env", "config"]

_LEAST_PART = 3
"""Characters of a name by which it is meant: "96gb", "dev"."""

PositiveInt = Annotated[int, Field(gt=0, strict=True)]
Quantization = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]

# (usable MB at least, profile), the first that holds
_ONE_GPU = ((85000, "generous_96gb"), (20000, "balanced_24gb"), (14000, "constrained_16gb"), (0, "development"))
_MANY_GPUS = ((60000, "generous_96gb"), (40000, "balanced_24gb"), (0, "constrained_16gb"))
_PAIR_MEAN_TOTAL_MB = 14000


class ProfileError(ConfigurationError, ValueError):
    """A profile that is unknown or wrong; the message names it, the field, and what is allowed."""


@dataclass(frozen=True)
class GpuSnapshot:
    """One GPU at one moment; ``index`` is NVML's, memory is in MB (bytes // 2**20)."""

    index: int
    name: str
    uuid: str
    vram_total_mb: int
    vram_free_mb: int

    @property
    def usable_mb(self) -> int:
        """What models may take of this card at all, whatever is free now."""
        return max(0, self.vram_total_mb - RESERVE_MB)


class Profile(BaseModel):
    """The rules for one class of machine, a ``[profiles.NAME]`` table of ``profiles.toml``.

    The descriptions say what a field holds and complete the message about a wrong value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="the NAME of its heading [profiles.NAME]")
    max_vram_mb: PositiveInt = Field(description="MB for all models over all GPUs, a whole number above 0")
    gpu_count: PositiveInt = Field(default=1, description="GPUs it is made for, a whole number above 0")
    max_concurrent_models: PositiveInt = Field(description="models loaded at once, a whole number above 0")
    preferred_quantizations: tuple[Quantization, ...] = Field(description="a list of names, the best first")
    strategy: Strategy = Field(description=" | ".join(get_args(Strategy)))
    bias: Bias = Field(description=" | ".join(get_args(Bias)))
    idle_unload_s: PositiveInt = Field(description="seconds without a request, a whole number above 0")
    allow_cpu: bool | None = Field(default=None, strict=True, description="true or false")
    groups: tuple[ModelGroup, ...] = Field(default=(), description="tables [[profiles.NAME.groups]]")


class _SharedGroup(ModelGroup):
    profiles: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="a list of profiles, one at least; all if it is left out"
    )


@dataclass(frozen=True)
class ActiveProfile:
    """The profile in force, who chose it, how many MB all models together may take, and on which devices.

    - ``auto`` (detected): the budget is what is there. One GPU: its usable memory; a like pair, or three and more: the
      sum; an unlike pair: the usable memory of the larger; no GPU: host RAM less the same reserve. So a card larger
      than its profile raises the budget, and a smaller one (8 GB under ``development``) lowers it.
    - ``env`` or ``config`` (a person named the profile): the budget is its ``max_vram_mb``, whatever is there.
    - A ceiling set by hand holds in each case.

    ``devices`` are the GPUs that count, by index, each with its usable memory; a named profile made for more GPUs than
    those has all of them. A budget below their sum leaves them as they are; one above it, which only a person can
    name, raises each in proportion. Without GPUs there is one device, ``HOST``, of the whole budget.
    """

    profile: Profile
    source: Source
    budget_mb: int
    devices: tuple[Device, ...]

    @property
    def groups(self) -> tuple[ModelGroup, ...]:
        """The groups that hold under this profile, with the models' names as they stand in the file."""
        return self.profile.groups


def parse_profiles(data: Mapping[str, Any]) -> dict[str, Profile]:
    """Return the profiles of a parsed ``profiles.toml`` by name, in the file's order, each with its groups.

    The groups at the top of the file come first; one of a profile's own replaces that of the same name. Raises
    ProfileError with every wrong field of the file, one a line.
    """
    if stray := sorted(set(data) - {"profiles", "groups"}):
        listed = ", ".join(map(repr, stray))
        raise ProfileError(f"profiles: unknown {listed}; allowed are tables [profiles.NAME] and [[groups]].")
    tables = data.get("profiles")
    if not isinstance(tables, Mapping) or not tables:
        raise ProfileError("profiles: there is none; allowed are tables [profiles.NAME], at least one.")
    named = {name: {"name": name, **table} if isinstance(table, Mapping) else table for name, table in tables.items()}
    problems: list[str] = []
    profiles = _validated(TypeAdapter(dict[str, Profile]), named, _profile_problem, problems)
    shared = _validated(TypeAdapter(list[_SharedGroup]), data.get("groups", []), _shared_group_problem, problems)
    problems += _unknown_profiles(shared or (), named)
    if profiles is None or shared is None or problems:
        raise ProfileError("\n".join(problems))
    if misnamed := [name for name, profile in profiles.items() if profile.name != name]:
        raise ProfileError(f"profile {misnamed[0]!r}, name: its heading names it; leave the field out.")
    return _with_groups(profiles, shared)


def _with_groups(profiles: Mapping[str, Profile], shared: Sequence[_SharedGroup]) -> dict[str, Profile]:
    found: dict[str, Profile] = {}
    problems: dict[str, None] = {}
    for name, profile in profiles.items():
        own = {group.name for group in profile.groups}
        general = [g for g in shared if g.name not in own and (g.profiles is None or name in g.profiles)]
        groups = (*(ModelGroup(**group.model_dump(exclude={"profiles"})) for group in general), *profile.groups)
        problems |= dict.fromkeys(clashes(groups))
        found[name] = profile.model_copy(update={"groups": groups})
    if problems:
        raise ProfileError("\n".join(problems))
    return found


def detect(gpus: Sequence[GpuSnapshot]) -> str:
    """Return the name of the shipped profile for these GPUs, in whatever order they come; none: ``development``."""
    counted = _counted(gpus)
    if not counted:
        return "development"
    if len(counted) == 2:
        mean_total_mb = sum(gpu.vram_total_mb for gpu in counted) / 2
        return "multi_gpu_2x16gb" if mean_total_mb >= _PAIR_MEAN_TOTAL_MB else "development"
    usable_mb = sum(gpu.usable_mb for gpu in counted)
    rules = _ONE_GPU if len(counted) == 1 else _MANY_GPUS
    return next(name for at_least_mb, name in rules if usable_mb >= at_least_mb)


def activate(  # noqa: PLR0913 - two facts about the machine, three wishes of a person, each by its name
    profiles: Mapping[str, Profile],
    gpus: Sequence[GpuSnapshot],
    host_ram_mb: int,
    *,
    forced: str | None,
    source: Literal["env", "config"] = "config",
    ceiling_mb: int | None = None,
) -> ActiveProfile:
    """Return the profile in force and its budget, by the rule of `ActiveProfile`.

    ``forced`` is the name a person gave, ``source`` where; ``host_ram_mb`` is the total. Raises ProfileError when
    ``profiles`` lacks the name, with the names there are and the nearest of them.
    """
    name = _detected(profiles, gpus) if forced is None else _named(profiles, forced)
    profile = profiles[name]
    budget_mb = _below(ceiling_mb, _available_mb(gpus, host_ram_mb) if forced is None else profile.max_vram_mb)
    used = _counted(gpus)
    if forced is not None and profile.gpu_count > len(used):
        used = gpus
    devices = _devices(used, budget_mb) if used else (Device(HOST, budget_mb, host_ram_mb),)
    return ActiveProfile(profile, "auto" if forced is None else source, budget_mb, devices)


def _named(profiles: Mapping[str, Profile], name: str) -> str:
    if name not in profiles:
        raise ProfileError(f"unknown profile {name!r};{_nearest(name, profiles)} allowed: {_listed(profiles)}.")
    return name


def _detected(profiles: Mapping[str, Profile], gpus: Sequence[GpuSnapshot]) -> str:
    name = detect(gpus)
    if name not in profiles:
        raise ProfileError(
            f"this machine calls for profile {name!r}, which profiles.toml lacks: add it there, "
            f"or name one of these as the deployment profile: {_listed(profiles)}."
        )
    return name


def _counted(gpus: Sequence[GpuSnapshot]) -> Sequence[GpuSnapshot]:
    """Return the GPUs that count: all, but of two unlike ones (over 20 % apart) only the larger."""
    if len(gpus) != 2:
        return gpus
    smaller, larger = sorted(gpus, key=lambda gpu: gpu.vram_total_mb)
    alike = 5 * (larger.vram_total_mb - smaller.vram_total_mb) <= larger.vram_total_mb
    return gpus if alike else (larger,)


def _available_mb(gpus: Sequence[GpuSnapshot], host_ram_mb: int) -> int:
    if not gpus:
        return max(0, host_ram_mb - RESERVE_MB)
    return sum(gpu.usable_mb for gpu in _counted(gpus))


def _devices(gpus: Sequence[GpuSnapshot], budget_mb: int) -> tuple[Device, ...]:
    """Return the GPUs as `ActiveProfile` says; one that the reserve fills is left out, unless all are."""
    cards = sorted([gpu for gpu in gpus if gpu.usable_mb] or gpus, key=lambda gpu: gpu.index)
    capacities = [gpu.usable_mb for gpu in cards]
    if budget_mb > sum(capacities):
        weights = [max(1, mb) for mb in capacities]
        capacities = [
            -(-budget_mb * weight // sum(weights)) for weight in weights
        ]  # rounded up, so that all of it fits
    return tuple(
        Device(gpu.uuid or str(gpu.index), mb, gpu.vram_total_mb, gpu.index)
        for gpu, mb in zip(cards, capacities, strict=True)
    )


def _below(ceiling_mb: int | None, budget_mb: int) -> int:
    return budget_mb if ceiling_mb is None else min(budget_mb, ceiling_mb)


def _validated(
    adapter: TypeAdapter[T], data: Any, problem: Callable[[ErrorDetails, Any], str], problems: list[str]
) -> T | None:
    """Return the value; None if it is wrong, and what is wrong then stands in ``problems``."""
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        problems += (problem(detail, data) for detail in error.errors())
        return None


def _profile_problem(detail: ErrorDetails, tables: Mapping[str, Any]) -> str:
    profile, *path = detail["loc"]
    if not path:
        return f"profile {profile!r} = {detail['input']!r}: allowed is a table [profiles.{profile}]."
    where = f"profile {profile!r}"
    if path[0] == "groups" and len(path) > 1:
        groups = tables[str(profile)]["groups"]
        return f"{where}, {_group_problem(detail, path[1:], groups, ModelGroup, f'[[profiles.{profile}.groups]]')}"
    fields = {name: field for name, field in Profile.model_fields.items() if name != "name"}
    return _field_problem(where, detail, path, fields)


def _shared_group_problem(detail: ErrorDetails, groups: Any) -> str:
    if not detail["loc"]:
        return f"groups = {groups!r}: allowed are tables [[groups]]."
    return _group_problem(detail, detail["loc"], groups, _SharedGroup, "[[groups]]")


def _group_problem(detail: ErrorDetails, loc: Sequence[Any], groups: Any, model: type[ModelGroup], heading: str) -> str:
    number, *path = loc
    if not path:
        return f"group {number + 1} = {detail['input']!r}: allowed is a table {heading}."
    name = groups[number].get("name")
    where = f"group {name!r}" if isinstance(name, str) else f"group {number + 1}"
    return _field_problem(where, detail, path, model.model_fields)


def _field_problem(where: str, detail: ErrorDetails, path: Sequence[Any], fields: Mapping[str, FieldInfo]) -> str:
    name, dotted = str(path[0]), ".".join(map(str, path))
    if name not in fields:
        return f"{where}, {dotted}: no such field;{_nearest(name, fields)} allowed: {_listed(fields)}."
    found = " is missing" if detail["type"] == "missing" else f" = {detail['input']!r}"
    if detail["type"] == "value_error":
        found += f", but {detail['ctx']['error']}"
    return f"{where}, {dotted}{found}; allowed: {fields[name].description}."


def _unknown_profiles(groups: Iterable[_SharedGroup], profiles: Collection[str]) -> list[str]:
    return [
        f"group {group.name!r}, profiles: no profile {name!r};{_nearest(name, profiles)} allowed: {_listed(profiles)}."
        for group in groups
        for name in group.profiles or ()
        if name not in profiles
    ]


def _nearest(wanted: str, known: Iterable[str]) -> str:
    names = list(known)
    close = get_close_matches(wanted, names, n=1)
    if not close and len(wanted) >= _LEAST_PART:  # "96gb" is far from "generous_96gb" by difflib
        close = [name for name in names if wanted in name]
    return f" did you mean {close[0]!r}?" if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
