"""What is written down of one task for one picture: a line of the output, whatever form that has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

from rolecall.vision.answers import writable

Key: TypeAlias = tuple[str, str, str, str]
"""File, task, version of the task, and its variables: of these there is one record."""

Status = Literal["ok", "failed"]


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of a task for a picture.

    ``file`` is the absolute path, ``sha256`` that of its bytes (empty if they could not be read). ``value`` is what the
    model said, in the form of the task's parser; ``tags`` are its words if they are words. ``discarded`` counts what
    was said and not used. ``error`` says why there is no value. ``sidecar`` is the XMP file that has it,
    ``sidecar_error`` why none has. ``ms`` is the time that all questions took, ``ts`` when they were answered, ISO 8601
    in UTC.
    """

    file: str
    sha256: str
    task: str
    version: str
    variables: Mapping[str, str] = field(default_factory=dict)
    status: Status = "ok"
    value: Any = None
    tags: tuple[str, ...] = ()
    discarded: int = 0
    error: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ms: float | None = None
    width: int | None = None
    height: int | None = None
    sidecar: str | None = None
    sidecar_error: str | None = None
    ts: str = ""

    @property
    def key(self) -> Key:
        """What no two records have in common."""
        return self.file, self.task, self.version, variables_text(self.variables)


COLUMNS = tuple(each.name for each in fields(Record))


def variables_text(variables: Mapping[str, str]) -> str:
    """Return variables as JSON, the same for the same ones."""
    return json.dumps(dict(variables), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def to_json(record: Record) -> str:
    """Return a record as one line of JSON without its end."""
    return json.dumps(writable(asdict(record)), ensure_ascii=False, separators=(",", ":"))


def from_json(text: str | bytes) -> Record:
    """Return the record of a line; raises ``ValueError`` for what is none. Fields that are not known are left out."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - the line's fault
    return from_values(values)


def from_values(values: Mapping[str, Any]) -> Record:
    """Return the record of its fields; raises ``ValueError`` if one is missing that every record has."""
    try:
        known = {name: values[name] for name in COLUMNS if name in values}
        return Record(**{**known, "tags": tuple(known.get("tags") or ())})
    except TypeError:
        raise ValueError("it lacks file, sha256, task or version") from None
