"""The hand-written registry changed by commands: one change at a time, checked before it is written, the rest kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rolecall.core.json_edit import append, drop, put
from rolecall.core.json_tree import parse_tree
from rolecall.core.registry import Registry, RegistryError, read_registry
from rolecall.runtime.private_file import locked, write_in_place
from rolecall.runtime.registry import CURATED, DISCOVERED, read_list
from rolecall.settings import standing

_BOM = b"\xef\xbb\xbf"
_EMPTY = "[]\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEdit:
    """What a change makes of a file."""

    path: Path
    before: str
    after: str
    written: bool = False

    @property
    def changed(self) -> bool:
        """Whether the text is another one."""
        return self.before != self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEdit(FileEdit):
    """What a change makes of the registry as a whole, too; ``backup`` is the copy of what was there."""

    registry: Registry
    discovered: Any = ()
    backup: Path | None = None


@dataclass(frozen=True, slots=True)
class RegistryText:
    """A registry file as text: ``rows`` are its entries, ``place`` is the way to their list in the text."""

    text: str
    rows: tuple[Any, ...]
    place: tuple[str, ...]
    discovered: Any = ()

    @classmethod
    def read(cls, text: str, discovered: Any = ()) -> RegistryText:
        """Return a text with its entries; raises ``ValueError`` for what is no JSON, or no list of entries."""
        try:
            parse_tree(text)
            data = json.loads(text)
        except ValueError as error:
            raise ValueError(f"is not JSON, so nothing was changed: {error}") from None
        place = ("models",) if isinstance(data, dict) and "models" in data else ()
        rows = data["models"] if place else data
        if not isinstance(rows, list):
            raise ValueError("must be a JSON list of entries; nothing was changed")  # noqa: TRY004 - the file's fault
        return cls(text, tuple(rows), place, discovered)

    def put(self, path: Sequence[str | int], value: Any) -> RegistryText:
        """Return it with a value at a path below the list of entries; raises ``RegistryError`` where none can stand."""
        try:
            return self.read(put(self.text, (*self.place, *path), value), self.discovered)
        except ValueError as error:
            raise RegistryError([f"{'.'.join(map(str, path[1:]))}: {error}; nothing was written"]) from None

    def drop(self, path: Sequence[str | int]) -> RegistryText:
        """Return it without the value at a path below the list of entries."""
        return self.read(drop(self.text, (*self.place, *path)), self.discovered)

    def append(self, row: Mapping[str, Any]) -> RegistryText:
        """Return it with one more entry."""
        return self.read(append(self.text, self.place, row), self.discovered)

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
    with locked(folder):
        source = standing(path)
        data = source.read_bytes() if source.exists() else _EMPTY.encode()
        found = _parsed(path, data, read_list(config_dir / DISCOVERED) if file is None else ())
        after = change(found)
        registry = _checked(path, after, found.discovered)
        before = found.text if source.exists() else ""
        edit = RegistryEdit(path=path, before=before, after=after, registry=registry, discovered=found.discovered)
        if dry_run or not edit.changed:
            return edit
        kept = back_up(path, data) if backup and path.exists() else None
        bom = _BOM if data.startswith(_BOM) else b""
        write_in_place(path, bom + after.encode("utf-8", "backslashreplace"))
    return replace(edit, written=True, backup=kept)


def _parsed(path: Path, data: bytes, discovered: Any) -> RegistryText:
    try:
        return RegistryText.read(data.decode("utf-8-sig"), discovered)
    except UnicodeDecodeError as error:
        raise RegistryError([f"{path}: is not JSON, so nothing was changed: {error}"]) from None
    except ValueError as error:
        raise RegistryError([f"{path}: {error}"]) from None


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
