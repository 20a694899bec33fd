"""The hand-written registry changed by commands: one change at a time, checked before it is written, the rest kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rolecall.core.json_tree import parse_tree
from rolecall.core.registry import Registry, RegistryError, read_registry
from rolecall.runtime.private_file import locked, write_in_place
from rolecall.runtime.registry import CURATED, DISCOVERED, read_list
from rolecall.settings import standing

_BOM = b"\xef\xbb\xbf"
_EMPTY = "[]\n"


@dataclass(frozen=True, slots=True)
class RegistryEdit:
    """What a change makes of a file, and of the registry as a whole; ``backup`` is the copy of what was there."""

    path: Path
    before: str
    after: str
    registry: Registry
    discovered: Any = ()
    written: bool = False
    backup: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether the text is another one."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class RegistryText:
    """A registry file as text: ``rows`` are its entries, ``place`` is the way to their list in the text."""

    text: str
    rows: tuple[Any, ...]
    place: tuple[str, ...]
    discovered: Any = ()

    def find(self, id_: str) -> int | None:
        """Return the position of the entry with this name, else with this alias."""
        objects = [(index, row) for index, row in enumerate(self.rows) if isinstance(row, dict)]
        named = [index for index, row in objects if row.get("name") == id_]
        aliased = [index for index, row in objects if id_ in _aliases(row)]
        return next(iter(named + aliased), None)


def _aliases(row: dict[str, Any]) -> list[Any]:
    aliases = row.get("model_aliases")
    return aliases if isinstance(aliases, list) else [aliases]


def edit_registry(
    config_dir: Path,
    change: Callable[[RegistryText], str],
    *,
    file: Path | None = None,
    dry_run: bool = False,
    backup: bool = False,
) -> RegistryEdit:
    """Give the text of the curated registry to ``change`` and write what it returns, unless nothing changed.

    ``file`` is another file, which stands for itself. Two changes at once come one after the other. Nothing is written
    with ``dry_run``, nor if the result would be refused: ``RegistryError`` names the entry and the field then. With
    ``backup`` a copy of what was there stays beside it. Raises ``OSError`` if it cannot be read or written.
    """
    path = config_dir / CURATED if file is None else file
    folder = path.resolve().parent
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if folder.is_dir() else nullcontext():
        source = standing(path)
        data = source.read_bytes() if source.exists() else _EMPTY.encode()
        found = _parsed(path, data, read_list(config_dir / DISCOVERED) if file is None else ())
        after = change(found)
        registry = _checked(path, after, found.discovered)
        edit = RegistryEdit(path, found.text if source.exists() else "", after, registry, found.discovered)
        if dry_run or not edit.changed:
            return edit
        kept = back_up(path, data) if backup and path.exists() else None
        bom = _BOM if data.startswith(_BOM) else b""
        write_in_place(path, bom + after.encode("utf-8", "backslashreplace"))
    return replace(edit, written=True, backup=kept)


def _parsed(path: Path, data: bytes, discovered: Any) -> RegistryText:
    try:
        text = data.decode("utf-8-sig")
        parse_tree(text)
    except ValueError as error:
        raise RegistryError([f"{path}: is not JSON, so nothing was changed: {error}"]) from None
    rows = json.loads(text)
    place: tuple[str, ...] = ()
    if isinstance(rows, dict) and "models" in rows:
        rows, place = rows["models"], ("models",)
    if not isinstance(rows, list):
        raise RegistryError([f"{path}: must be a JSON list of entries; nothing was changed"])
    return RegistryText(text, tuple(rows), place, discovered)


def _checked(path: Path, text: str, discovered: Any) -> Registry:
    try:
        return read_registry(json.loads(text), discovered)
    except RegistryError as error:
        problems = [f"{path}: {problem}" for problem in error.problems]
        raise RegistryError([*problems, "nothing was written"]) from None


def back_up(path: Path, data: bytes) -> Path:
    """Copy a file beside itself, with its mode, under a name that nothing else has; returns that."""
    path = path.resolve()
    stem = f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.bak" for number in range(1, 1000))
    backup = next(place for name in names if not (place := path.with_name(name)).exists())
    backup.touch(path.stat().st_mode & 0o777)
    backup.chmod(path.stat().st_mode & 0o777)
    write_in_place(backup, data)
    return backup
