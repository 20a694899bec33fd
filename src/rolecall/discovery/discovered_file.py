"""``model_registry.discovered.json``: what earlier scans found, and what this one makes of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolecall.core.registry import RegistryError, rows_of
from rolecall.discovery.entries import MARK, Entry, Named, identity
from rolecall.discovery.scan import Findings
from rolecall.runtime.registry import DISCOVERED, read_list, write_atomically
from rolecall.runtime.registry_edit import back_up


@dataclass
class Earlier:
    """The file as it stood: entries of scans, and entries that others wrote, which are left as they are."""

    path: Path
    scanned: list[Entry] = field(default_factory=list)
    foreign: list[Any] = field(default_factory=list)
    problem: str | None = None

    def names(self) -> dict[str, str]:
        """Return the names of the scanned entries by what they stand for."""
        return {identity(entry): str(entry["name"]) for entry in self.scanned}


@dataclass
class Next:
    """The file as it will stand. ``states`` say of each scanned entry: new, changed, known, kept or vanished."""

    entries: list[Any] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def read_earlier(config_dir: Path) -> Earlier:
    """Return what is in the file; one that is broken counts as empty, with ``problem`` saying so."""
    earlier = Earlier(config_dir / DISCOVERED)
    try:
        data = read_list(earlier.path)
    except RegistryError as error:
        earlier.problem = str(error)
        return earlier
    for row in rows_of(data):
        (earlier.scanned if _is_scanned(row) else earlier.foreign).append(row)
    return earlier


def _is_scanned(row: Any) -> bool:
    metadata = row.get("metadata") if isinstance(row, dict) else None
    return isinstance(metadata, dict) and isinstance(metadata.get(MARK), dict) and isinstance(row.get("name"), str)


def following(earlier: Earlier, named: Sequence[Named], findings: Findings, *, forget: bool = False) -> Next:
    """Return what the file shall hold.

    Models of this scan are in it, and those of earlier ones that it did not find: as ``vanished`` if their files are
    gone, or their daemon has them no longer (such count as not installed until they are back), as ``kept`` if nobody
    looked there this time. One whose files are there and are no model any more is dropped, and with ``forget`` the
    vanished are too.
    """
    result = Next(list(earlier.foreign))
    before = {str(entry["name"]): entry for entry in earlier.scanned}
    scanned = [each.entry for each in named]
    for entry in scanned:
        old = before.get(entry["name"])
        result.states[entry["name"]] = "new" if old is None else "known" if old == entry else "changed"
    found = {identity(entry) for entry in scanned}
    for name, entry in before.items():
        if name in result.states or identity(entry) in found:
            continue
        state = _state_of(entry, findings)
        if state == "dropped" or (state == "vanished" and forget):
            result.dropped.append(name)
        else:
            result.states[name] = state
            scanned.append(entry)
    result.entries += sorted(scanned, key=lambda entry: str(entry["name"]))
    return result


def _state_of(entry: Mapping[str, Any], findings: Findings) -> str:
    """What became of an entry that was not found again."""
    config = entry.get("backend_config")
    path = config.get("model_path") if isinstance(config, dict) else None
    if not isinstance(path, str):
        return "vanished" if findings.has_answered else "kept"
    with suppress(OSError, ValueError):
        Path(path).stat()
        return "dropped" if any(_lies_in(path, folder) for folder in findings.looked_at) else "kept"
    return "vanished"


def _lies_in(path: str, folder: Path) -> bool:
    return Path(path).is_relative_to(folder) or Path(os.path.realpath(path)).is_relative_to(folder)


def as_text(entries: Sequence[Any]) -> str:
    """Return the file's content."""
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def keep_broken(earlier: Earlier) -> Path | None:
    """Copy a file that cannot be read as a registry beside itself, for it may have been more; returns the copy."""
    if earlier.problem is None:
        return None
    try:
        return back_up(earlier.path, earlier.path.read_bytes())
    except OSError as error:
        reason = f"{earlier.problem}\nit cannot be copied ({error.strerror}), so it is left as it is: move it aside"
        raise RegistryError(reason.splitlines()) from None


def write(path: Path, entries: Sequence[Any]) -> bool:
    """Write the file in one step; False if it stands so already, or there is nothing to write and was nothing."""
    text = as_text(entries)
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return False
    if not entries and not path.exists():
        return False
    write_atomically(path, text)
    return True
