"""Our own request log as a workload: each line is a request that came when it came, and took as long as it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from statistics import median
from typing import Any

import orjson

from rolecall.core.wording import some
from rolecall.errors import ConfigurationError
from rolecall.simulation.workload import Chain, Machine, Model, Step, Workload

LOAD_S = 10.0
"""How long a model takes to load if the log shows no load of it."""

_TOLD_LIMIT = 5


@dataclass(frozen=True, slots=True)
class Record:
    """What a line says: when the request arrived (s since the epoch), what it asked for, who answered, how long."""

    arrived: float
    model: str
    role: str | None
    answer_s: float
    load_s: float


def parse_log(lines: Iterable[bytes], name: str, models: Mapping[str, Model], machine: Machine) -> Workload:
    """Return the requests of a log; ``models`` are those of the registry, by name.

    ``ts`` is when a request arrived. The answer took ``duration_ms`` less ``queue_ms`` and ``load_ms``; a model's load
    time is the median of the loads that the log shows. A request for a role is one for every model that plays it.
    Requests that no model answered are left out, with a note. Raises ``ConfigurationError`` with file and line.
    """
    records, skipped, last_is_cut = _read(lines, name)
    if unknown := sorted({record.model for record in records} - models.keys()):
        shown = some([repr(each) for each in unknown], _TOLD_LIMIT)
        raise ConfigurationError(
            f"{name}: the registry has no model {shown}; --config-dir names another one, "
            "--model NAME=VRAM_MB,LOAD_S,MAX_PARALLEL tells of a model"
        )
    notes = [f"{skipped} requests that no model answered were left out"] if skipped else []
    notes += ["the last line is cut off and was left out"] if last_is_cut else []
    first = min(record.arrived for record in records)
    records.sort(key=lambda record: record.arrived)
    known = {record.model for record in records} | _playing({record.role for record in records}, models)
    return Workload(
        models=tuple(_learnt(models[name], records) for name in sorted(known)),
        machine=machine,
        chains=tuple(Chain(record.arrived - first, (_step(record, models),)) for record in records),
        notes=tuple(notes),
    )


def _read(lines: Iterable[bytes], name: str) -> tuple[list[Record], int, bool]:
    records: list[Record] = []
    skipped, broken = 0, None
    for number, line in enumerate(lines, 1):
        if broken is not None:
            raise broken
        if not line.strip():
            continue
        try:
            record = _record(orjson.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"misses {error}" if isinstance(error, KeyError) else str(error)
            broken = ConfigurationError(f"{name}, line {number} is no line of a request log: {why}")
            if line.endswith(b"\n"):
                raise broken from None
            continue
        skipped += record is None
        records += [record] if record else []
    if not records:
        raise broken or ConfigurationError(f"{name}: there is no request in it")
    return records, skipped, broken is not None


def _record(fields: Mapping[str, Any]) -> Record | None:
    """Return what a line says; None for a request that no model answered."""
    arrived = datetime.fromisoformat(fields["ts"].replace("Z", "+00:00"))
    if arrived.tzinfo is None:
        arrived = arrived.replace(tzinfo=timezone.utc)
    status, model = fields["status"], fields["model"]
    if model is None or status is None or status >= 400 or fields["duration_ms"] is None:
        return None
    queue_ms, load_ms = (_number(fields.get(key) or 0, key) for key in ("queue_ms", "load_ms"))
    answer_ms = max(0.0, _number(fields["duration_ms"], "duration_ms") - queue_ms - load_ms)
    return Record(arrived.timestamp(), model, fields.get("role"), answer_ms / 1000, load_ms / 1000)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} is {value!r}, no number")
    return float(value)


def _step(record: Record, models: Mapping[str, Model]) -> Step:
    plays = record.role is not None and record.role in dict(models[record.model].roles)
    return Step(f"role:{record.role}" if plays else record.model, record.answer_s)


def _playing(roles: set[str | None], models: Mapping[str, Model]) -> set[str]:
    return {name for name, model in models.items() if not roles.isdisjoint(dict(model.roles))}


def _learnt(model: Model, records: Sequence[Record]) -> Model:
    """Return the model with the load time that the log shows.

    A request that came while its model was loading waited for a part of the load only: waits below half of the longest
    do not count.
    """
    loads = [record.load_s for record in records if record.model == model.name and record.load_s > 0]
    whole = [load_s for load_s in loads if load_s >= max(loads) / 2]
    return replace(model, load_s=median(whole)) if whole else model
