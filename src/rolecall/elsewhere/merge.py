"""Entries from elsewhere laid beside those of a registry: what is new, what is there already, and what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rolecall.elsewhere.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Conflict:
    """An entry that is there already and says something else; ``differs`` tells the fields, in words."""

    name: str
    line: int
    differs: tuple[str, ...]


@dataclass
class Merge:
    """What becomes of the entries: ``added`` go to the end, ``replaced`` have the position of the entry that goes."""

    added: list[dict[str, Any]] = field(default_factory=list)
    replaced: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)


def merge(rows: Sequence[Any], discovered: Sequence[Any], outcome: Outcome, *, replace: bool) -> Merge:
    """Return what becomes of the drafts; those of a name that is taken stay out, or ``replace`` what is there.

    Names and aliases are unique over the whole registry: an alias that is taken is left out, with a remark.
    """
    merged = Merge()
    here = {row["name"]: (at, row) for at, row in enumerate(rows) if isinstance(row, dict) and "name" in row}
    owners = dict(_owned(discovered)) | dict(_owned(rows))
    for draft in outcome.drafts:
        name = draft.entry["name"]
        if owners.get(name, name) != name:
            text = f"the name {name!r} is an alias of {owners[name]!r} already; the entry was left out"
            outcome.lost(draft.line, draft.subject, text)
            continue
        entry, taken = _with_free_aliases(draft.entry, owners)
        at, row = here.get(name, (-1, None))
        if row == entry:
            merged.unchanged.append(name)
        elif row is not None and not (replace and at >= 0):
            merged.conflicts.append(Conflict(name, draft.line, tuple(_differences(row, entry))))
            continue
        elif row is not None:
            merged.replaced.append((at, entry))
        else:
            merged.added.append(entry)
            here[name] = (-1, entry)
        owners |= dict(_owned([entry]))
        for alias in taken:
            text = f"the alias {alias!r} belongs to {owners[alias]!r} already; it was left out"
            outcome.lost(draft.line, draft.subject, text)
    outcome.remarks.sort(key=lambda remark: remark.line)
    return merged


def _owned(rows: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("name"), str):
            aliases = row.get("model_aliases") or []
            for id_ in (*([aliases] if isinstance(aliases, str) else aliases), row["name"]):
                yield id_, row["name"]


def _with_free_aliases(entry: dict[str, Any], owners: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the entry with the aliases that nobody else has, and the others; its own name is none."""
    name, aliases = entry["name"], entry.get("model_aliases", [])
    listed = [each for each in dict.fromkeys([aliases] if isinstance(aliases, str) else aliases) if each != name]
    taken = [alias for alias in listed if owners.get(alias, name) != name]
    free = [alias for alias in listed if alias not in taken]
    rest = {key: value for key, value in entry.items() if key != "model_aliases"}
    found: dict[str, Any] = {key: rest.pop(key) for key in ("name", "display_name") if key in rest}
    if free:
        found["model_aliases"] = free
    return found | rest, taken


def _differences(here: Any, there: Any, path: str = "") -> Iterator[str]:
    """Yield the fields in which two entries differ, with the values that are short."""
    for key in dict.fromkeys((*here, *there)):
        where = f"{path}.{key}".lstrip(".")
        ours, theirs = here.get(key), there.get(key)
        if ours == theirs:
            continue
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and key != "env":
            yield from _differences(ours, theirs, where)
        elif key == "env":
            yield where
        else:
            yield f"{where} ({_short(ours)} here, {_short(theirs)} there)"


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
