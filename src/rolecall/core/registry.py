"""Many entries as one registry: merged, validated as a whole, with every problem named by entry and field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from rolecall.core.models import (
    BACKENDS,
    CAPABILITIES,
    BackendConfig,
    HistoryRules,
    ModelEntry,
    RequestRules,
    flag_value,
)
from rolecall.core.wording import counted, meant
from rolecall.errors import ConfigurationError


class RegistryError(ConfigurationError):
    """The registry cannot be used; one line a problem, each with the entry and the field."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Registry:
    """The merged registry: valid entries by file order, the merged raw form, and what deserves a look."""

    entries: tuple[ModelEntry, ...] = ()
    merged: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Reading:
    entries: list[ModelEntry] = field(default_factory=list)
    merged: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    unknown: Counter[tuple[str, str]] = field(default_factory=Counter)


def read_registry(curated: Any, discovered: Any = ()) -> Registry:
    """Merge and validate the two hand-kept and machine-written lists of entries.

    A curated entry wins over a discovered one of the same name field by field. A wrong curated entry raises
    ``RegistryError`` naming all wrong entries and fields; a wrong discovered one is left out with a warning, because
    nobody wrote it by hand.
    """
    reading = _Reading()
    found = _read_discovered(reading, discovered)
    for number, row in enumerate(_rows(curated, "the curated registry"), 1):
        label = _label(row, f"entry {number}")
        base = found.pop(row["name"])[1] if isinstance(row, dict) and _name(row) in found else {}
        _read_entry(reading, _merge(base, row) if base else row, label, reading.problems)
    for label, row in found.values():
        _read_entry(reading, row, label, reading.warnings)
    if reading.problems:
        raise RegistryError(reading.problems)
    warnings = (
        *reading.warnings,
        *_unknown_keys(reading.unknown),
        *_unknown_backends(reading.entries),
        *_unknown_capabilities(reading.entries),
        *_shared_ports(reading.entries),
        *_addresses(reading.entries),
    )
    return Registry(tuple(reading.entries), tuple(reading.merged), warnings)


def _read_discovered(reading: _Reading, discovered: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the valid discovered entries by name, each with its label; the others become warnings."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, row in enumerate(_rows(discovered, "the discovered registry"), 1):
        label = _label(row, f"discovered entry {number}")
        entry = _validated(row, label, reading.warnings)
        if entry is None:
            continue
        if entry.name in found:
            reading.warnings.append(f"{label}: {_twice(entry, entry.name, found[entry.name][0])}")
        else:
            found[entry.name] = label, row
    return found


def _rows(data: Any, what: str) -> Sequence[Any]:
    if isinstance(data, Mapping):
        data = data.get("models", data)
    if not isinstance(data, list | tuple):
        raise RegistryError([f"{what} must be a JSON list of entries, not {_kind(data)}"])
    return data


def rows_of(data: Any) -> Sequence[Any]:
    """Return the entries of a file, which is a list or an object that has one as ``models``; none of anything else."""
    rows = data.get("models") if isinstance(data, Mapping) else data
    return rows if isinstance(rows, list | tuple) else ()


def _name(row: Any) -> str | None:
    name = row.get("name") if isinstance(row, dict) else None
    return name if isinstance(name, str) else None


def _kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``, object by object; a null is not given, so it takes nothing away."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if value is None and old is not None:
            continue
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _label(row: Any, place: str) -> str:
    name = _name(row)
    return place if name is None else f"{place} {_short(name)}"


def _validated(row: Any, label: str, complaints: list[str]) -> ModelEntry | None:
    if not isinstance(row, dict):
        complaints.append(f"{label}: must be an object, not {_kind(row)}")
        return None
    try:
        return ModelEntry.model_validate(row)
    except ValidationError as error:
        complaints.extend(f"{label}: {_field_problem(problem)}" for problem in error.errors())
        return None


def _read_entry(reading: _Reading, row: Any, label: str, complaints: list[str]) -> None:
    entry = _validated(row, label, complaints)
    if entry is None:
        return
    taken = [f"{label}: {_twice(entry, id_, reading.owners[id_])}" for id_ in set(entry.ids) & reading.owners.keys()]
    complaints.extend(sorted(taken))
    if not taken:
        reading.owners.update(dict.fromkeys(entry.ids, label))
        reading.entries.append(entry)
        reading.merged.append(row)
        for part, record in (("", entry), ("backend_config", entry.backend_config), ("request", entry.request)):
            reading.unknown.update((part, key) for key in record.model_extra or ())


def _twice(entry: ModelEntry, id_: str, owner: str) -> str:
    what = "name" if id_ == entry.name else "model_aliases"
    return f"field {what}: {_short(id_)} already belongs to {owner}; names and aliases must be unique"


def _field_problem(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    what = str(problem["msg"]).removeprefix("Value error, ")
    if not path:  # of the entry as a whole, which names the field itself
        return what
    if problem["type"] == "missing":
        return f"field {path}: is missing"
    return f"field {path}: {what} (got {_short(problem['input'])})"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown[:80] + "…" if len(shown) > 80 else shown


_ADDRESS_FLAGS = ("--host", "--port", "--uds")
_STARTED = ("llama_cpp", "vllm")
_CONTAINERS = ("docker", "podman", "nerdctl")
"""Programs whose engines listen inside a container, where nobody reaches an address but by ``--publish``."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "{host}", "${host}")

_PARTS: dict[str, type[BaseModel]] = {
    "": ModelEntry,
    "backend_config": BackendConfig,
    "request": RequestRules,
    "history": HistoryRules,
}


def _unknown_keys(unknown: Counter[tuple[str, str]]) -> list[str]:
    lines = []
    for (part, key), count in sorted(unknown.items()):
        where = f"{part}.{key}" if part else key
        lines.append(f"unknown field {where!r} in {_entries(count)}, kept{_meant(key, _PARTS[part].model_fields)}")
    return lines


def _meant(word: str, known: Iterable[str]) -> str:
    near = meant(word, known, cutoff=0.8)
    return f"; {near}" if near else ""


def unknown_field(path: Sequence[str]) -> str | None:
    """Return that an entry has no field of that path, and which may be meant; None if it has, or may have any there."""
    part = path[0] if len(path) > 1 and path[0] in _PARTS else ""
    name, fields = path[1 if part else 0], _PARTS[part].model_fields
    if name in fields:
        return None
    where = f"{part}.{name}" if part else name
    inside = [f"{other}.{name}" for other, record in _PARTS.items() if other and name in record.model_fields]
    near = f"did you mean {inside[0]!r}?" if inside else meant(name, fields)
    return f"there is no field {where!r}; {near or 'known are ' + ', '.join(fields)}"


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")


def _unknown_backends(entries: Iterable[ModelEntry]) -> Iterator[str]:
    """With a command any name will do, but one that is almost ours is hardly meant to be another engine's."""
    unknown = Counter((e.backend, bool(e.backend_config.command)) for e in entries if e.backend not in BACKENDS)
    for (backend, has_command), count in sorted(unknown.items()):
        near = _meant(backend, BACKENDS)
        if not has_command:
            lacks = "which cannot be served without a backend_config.command"
            advice = near or f"; known are {', '.join(BACKENDS)}"
            yield f"unknown backend {_short(backend)} in {_entries(count)}, {lacks}{advice}"
        elif near:
            yield f"unknown backend {_short(backend)} in {_entries(count)}, driven by its command alone{near}"


def _unknown_capabilities(entries: Iterable[ModelEntry]) -> list[str]:
    return [
        f"{entry.name!r}: unknown capability {word!r}, kept; known are {', '.join(CAPABILITIES)}"
        for entry in entries
        for word in entry.capabilities
        if word not in CAPABILITIES
    ]


def _shared_ports(entries: Iterable[ModelEntry]) -> list[str]:
    fixed: dict[int, list[str]] = {}
    for entry in entries:
        if entry.backend_config.port and not entry.backend_config.base_url and entry.backend != "openai":
            fixed.setdefault(entry.backend_config.port, []).append(entry.name)
    return [
        f"backend_config.port {port} is fixed for {' and '.join(map(repr, names))}: they cannot run at the same time"
        for port, names in sorted(fixed.items())
        if len(names) > 1
    ]


def _addresses(entries: Iterable[ModelEntry]) -> list[str]:
    """Engines are for this machine alone: whoever else could reach one would pass by rolecall's keys and limits."""
    return [problem for entry in entries for problem in _address_problems(entry)]


def _address_problems(entry: ModelEntry) -> Iterator[str]:
    config = entry.backend_config
    if config.command:
        network = flag_value(config.command, "--network", "--net")
        if config.command[0].rpartition("/")[2] in _CONTAINERS and network != "host":
            return
        host = flag_value((*config.command, *config.extra_args), "--host")
        if host is not None and host.lower() not in _LOOPBACK:
            yield (
                f"{entry.name!r}: its command listens on {host}, where others may reach it without rolecall; "
                "{host} stands for 127.0.0.1"
            )
    elif entry.backend in _STARTED:
        flags = [flag for flag in _ADDRESS_FLAGS if flag_value(config.extra_args, flag) is not None]
        if flags:
            yield (
                f"{entry.name!r}: {' and '.join(flags)} in extra_args are left out: engines listen on 127.0.0.1, on a "
                "port that rolecall gives them (backend_config.port fixes it)"
            )


def registry_schema() -> dict[str, Any]:
    """Return the JSON Schema of a registry file; like the reader it takes null for anything optional."""
    schema = TypeAdapter(list[ModelEntry]).json_schema()
    for record in schema["$defs"].values():
        for name, field_ in record["properties"].items():
            if name not in record.get("required", ()):
                record["properties"][name] = {"anyOf": [field_, {"type": "null"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "rolecall model registry", **schema}
