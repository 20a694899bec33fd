"""The decision log: what the scheduler was told and what it answered, one JSON line an event, so that it can be re-run.

The first line holds the scheduler's parameters, each further one ``{"now", "event", "effects"}``. Events are complete:
read back, they are equal to what was handled. Effects are described, to be compared: an error by its code and message,
a grant by the model and the reason. No request contents are in either; the fields of the registry's entries are, with
the variables of their ``env``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from rolecall.core.events import Effect, Event, Grant, Reject
from rolecall.core.scheduler import Scheduler

VERSION = 1

Description = Mapping[str, Any]
"""An effect as it stands in the log."""

_KINDS = {kind.__name__: kind for kind in get_args(Event)}
_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in _KINDS.values()}
_READERS: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(kind) for name, kind in _KINDS.items()}
_PARAMETERS = tuple(field.name for field in fields(Scheduler) if field.init)


class BrokenLogError(ValueError):
    """A line of a decision log that cannot be understood; the message names its number."""


@dataclass(frozen=True, slots=True)
class Header:
    """A scheduler was made with these parameters; what follows was handled by it."""

    parameters: Mapping[str, Any]

    def scheduler(self) -> Scheduler:
        """Return a new scheduler like it; raises ``BrokenLogError`` for a parameter that there is no longer."""
        if unknown := sorted(self.parameters.keys() - set(_PARAMETERS)):
            raise BrokenLogError(f"this version's scheduler has no parameter {', '.join(unknown)}")
        return Scheduler(**self.parameters)


@dataclass(frozen=True, slots=True)
class Decision:
    """One event, handled at ``now`` (s), and what was answered. ``line`` counts from 1."""

    line: int
    now: float
    event: Event
    effects: tuple[Description, ...]


@dataclass(frozen=True, slots=True)
class Truncated:
    """A line that was not written to its end: the process was killed."""

    line: int


def header(scheduler: Scheduler) -> bytes:
    """Return the line that stands before a new scheduler's decisions, with its newline."""
    parameters = {name: getattr(scheduler, name) for name in _PARAMETERS}
    return _dump({"version": VERSION, "scheduler": parameters})


def encode(event: Event, now: float, effects: Iterable[Effect]) -> bytes:
    """Return the line of one call of ``Scheduler.handle``, with its newline."""
    kind = type(event)
    told = {"type": kind.__name__, **{name: getattr(event, name) for name in _FIELDS[kind]}}
    return _dump({"now": now, "event": told, "effects": [describe(effect) for effect in effects]})


def describe(effect: Effect) -> Description:
    """Return an effect as JSON values: its type, its fields, an error's code and message, a grant's reason."""
    described: dict[str, Any] = {"type": type(effect).__name__}
    match effect:
        case Grant(waiter, model, selection):
            return described | {"waiter": waiter, "model": model, "reason": selection.reason}
        case Reject(waiter, error):
            return described | {"waiter": waiter, "code": error.code, "message": error.message}
        case _:
            values = {field.name: getattr(effect, field.name) for field in fields(effect) if field.compare}
            if "placement" in values:
                values["placement"] = [[share.device, share.mb] for share in values["placement"]]
            if (reduction := values.pop("reduction", None)) is not None:
                values["reduction"] = str(reduction)
            return described | values


def read(lines: Iterable[bytes]) -> Iterator[Header | Decision | Truncated]:
    """Yield what a decision log holds; several runs may follow each other, each with its header.

    Only the last line of a run may be cut off. Raises ``BrokenLogError`` for any other line that is none.
    """
    cut: tuple[int, str] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = _read_line(number, line)
        except BrokenLogError as error:
            if cut is not None:
                raise BrokenLogError(cut[1]) from error
            cut = (number, str(error))
            continue
        if cut is not None:
            if not isinstance(item, Header):
                raise BrokenLogError(cut[1])
            yield Truncated(cut[0])
            cut = None
        yield item
    if cut is not None:
        yield Truncated(cut[0])


def _read_line(number: int, line: bytes) -> Header | Decision:
    try:
        data = json.loads(line)  # orjson would read integers over 64 bits as floats
        if "version" in data:
            return _header(data)
        told = dict(data["event"])
        event: Event = _READERS[told.pop("type")].validate_python(told)
        return Decision(number, float(data["now"]), event, tuple(data["effects"]))
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BrokenLogError(f"line {number} is no line of a decision log ({why})") from None


def _header(data: Mapping[str, Any]) -> Header:
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r}, this rolecall reads {VERSION}")
    return Header(dict(data["scheduler"]))


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # integers over 64 bits, which a registry may hold
        return json.dumps(_all_plain(value)).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, frozenset):
        return sorted(value)
    return dict(value)  # a read-only mapping


def _all_plain(value: Any) -> Any:
    """Return the value as the standard library's writer takes it."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _all_plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_all_plain(member) for member in value]
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _all_plain(getattr(value, field.name)) for field in fields(value) if field.init}
    return _all_plain(_plain(value))
