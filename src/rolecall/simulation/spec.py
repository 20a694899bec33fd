"""Synthetic workloads: a small description of models and clients, drawn into requests with a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from rolecall.core.events import Group, SleepCost
from rolecall.errors import ConfigurationError
from rolecall.simulation.workload import Chain, Machine, Model, Step, Workload

MAX_REQUESTS = 200_000


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A time in s: uniform between ``least`` and ``most``, or exponential around ``mean``."""

    least: float = 0
    most: float = 0
    mean: float | None = None

    def draw(self, source: random.Random) -> float:
        """Draw one."""
        if self.mean is not None:
            return source.expovariate(1 / self.mean) if self.mean else 0.0
        return source.uniform(self.least, self.most) if self.least < self.most else self.least


def _time(value: Any) -> Drawn:
    """Read a number of seconds, ``[least, most]``, or ``{mean = …}``."""
    match value:
        case {"mean": mean, **rest} if not rest and _is_time(mean):
            return Drawn(mean=mean)
        case [least, most] if _is_time(least) and _is_time(most) and least <= most:
            return Drawn(least, most)
        case _ if _is_time(value):
            return Drawn(value, value)
        case _:
            raise ValueError("a time is a number of seconds, [least, most], or {mean = seconds}")


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _times(value: Any) -> Drawn | dict[str, Drawn]:
    """Read one time, or a table with one for each name."""
    if isinstance(value, dict) and "mean" not in value:
        return {name: _time(time) for name, time in value.items()}
    return _time(value)


NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Time = Annotated[Drawn, PlainValidator(_time)]
Times = Annotated[Drawn | dict[str, Drawn], PlainValidator(_times)]


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


class ModelTable(_Table):
    """``[models.NAME]``."""

    vram_mb: Annotated[int, Field(ge=0)]
    load_s: NotNegative
    stop_s: NotNegative = 0
    max_parallel: Positive = 1
    roles: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(default_factory=dict)
    answer_factor: NotNegative = 1
    idle_unload_s: NotNegative | None = None
    spread: tuple[Positive, ...] = (1,)
    sleep: tuple[SleepCost, ...] = ()
    pinned: bool = False


class ClientsTable(_Table):
    """``[[clients]]``: closed-loop clients, or, with ``per_hour``, sessions that come at random (a Poisson process).

    Each sends ``requests`` (a number, or ``[least, most]``), those of ``cycle`` in turn, the next one ``think_s`` after
    an answer. ``answer_s`` and ``think_s`` are times, or tables with a time for each name of the cycle. ``start_s`` is
    when a client comes; sessions come between ``from_h`` and ``to_h``.
    """

    cycle: Annotated[tuple[str, ...], Field(min_length=1)]
    requests: Annotated[tuple[Positive, Positive], BeforeValidator(_as_range)]
    answer_s: Times
    think_s: Times = Drawn()
    count: Positive = 1
    start_s: Time = Drawn()
    per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    from_h: NotNegative = 0
    to_h: NotNegative = 24

    @model_validator(mode="after")
    def _says_every_time(self) -> ClientsTable:
        for name, times in (("answer_s", self.answer_s), ("think_s", self.think_s)):
            if isinstance(times, dict) and (missing := set(self.cycle) - times.keys()):
                raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
        return self


class GroupTable(_Table):
    """``[[groups]]``: models that belong together."""

    name: str
    models: tuple[str, ...]
    startup: Literal["parallel", "serial"] = "serial"


class SpecFile(_Table):
    """A whole description."""

    about: str = ""
    seed: int = 1
    gpus_mb: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    max_models: Annotated[int, Field(ge=0)] = 0
    sleep_mb: Annotated[int, Field(ge=0)] = 0
    max_overtake_s: NotNegative = 20
    tolerance: Annotated[float, Field(ge=0, le=100)] = 0
    idle_unload_s: NotNegative = 0
    models: Annotated[dict[str, ModelTable], Field(min_length=1)]
    groups: tuple[GroupTable, ...] = ()
    clients: Annotated[tuple[ClientsTable, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_what_there_is(self) -> SpecFile:
        known = {*self.models, *(f"role:{role}" for model in self.models.values() for role in model.roles)}
        for clients in self.clients:
            if unknown := sorted(set(clients.cycle) - known):
                raise ValueError(f"no model and no role is named {', '.join(unknown)}; there are {_listed(known)}")
        return self


def parse_spec(data: Mapping[str, Any], name: str, seed: int | None = None) -> Workload:
    """Draw the requests of a description; ``name`` is its file for messages, ``seed`` takes the place of its own.

    Raises ``ConfigurationError`` with every problem, one a line.
    """
    try:
        spec = SpecFile.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError("\n".join(f"{name}: {_problem(detail)}" for detail in error.errors())) from None
    chains = tuple(_chains(spec, name, spec.seed if seed is None else seed))
    groups = tuple(Group(group.name, group.models, group.startup) for group in spec.groups)
    return Workload(
        models=tuple(_model(name, table, spec) for name, table in spec.models.items()),
        machine=Machine(spec.gpus_mb, spec.max_models, spec.sleep_mb, groups),
        chains=chains,
        max_overtake_s=spec.max_overtake_s,
        tolerance=spec.tolerance,
        about=spec.about,
    )


def _model(name: str, table: ModelTable, spec: SpecFile) -> Model:
    return Model(
        name=name,
        vram_mb=table.vram_mb,
        load_s=table.load_s,
        stop_s=table.stop_s,
        max_parallel=table.max_parallel,
        roles=tuple(table.roles.items()),
        answer_factor=table.answer_factor,
        idle_unload_s=spec.idle_unload_s if table.idle_unload_s is None else table.idle_unload_s,
        spread=table.spread,
        sleep=table.sleep,
        pinned=table.pinned,
    )


def _chains(spec: SpecFile, name: str, seed: int) -> Iterator[Chain]:
    requests = 0
    for number, clients in enumerate(spec.clients):
        source = random.Random(f"{seed} {number}")  # noqa: S311 - a workload that anyone can draw again
        for start_s in _starts(clients, source):
            chain = Chain(start_s, tuple(_steps(clients, source)))
            requests += len(chain.steps)
            if requests > MAX_REQUESTS:
                raise ConfigurationError(f"{name}: more than {MAX_REQUESTS} requests")
            yield chain


def _starts(clients: ClientsTable, source: random.Random) -> Iterator[float]:
    if clients.per_hour is None:
        yield from (clients.start_s.draw(source) for _ in range(clients.count))
        return
    at = 3600 * clients.from_h
    while (at := at + source.expovariate(clients.per_hour / 3600)) < 3600 * clients.to_h:
        yield at


def _steps(clients: ClientsTable, source: random.Random) -> Iterator[Step]:
    for number in range(source.randint(*clients.requests)):
        wanted = clients.cycle[number % len(clients.cycle)]
        yield Step(wanted, _of(clients.answer_s, wanted).draw(source), _of(clients.think_s, wanted).draw(source))


def _of(times: Drawn | dict[str, Drawn], wanted: str) -> Drawn:
    return times[wanted] if isinstance(times, dict) else times


def _problem(detail: Any) -> str:
    where = ".".join(map(str, detail["loc"]))
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
