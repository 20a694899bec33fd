"""A config folder written as a whole: a new one appears complete, in an old one each file is replaced in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rolecall.errors import ConfigurationError
from rolecall.runtime.interruption import undisturbed
from rolecall.runtime.private_file import locked, write_in_place
from rolecall.runtime.registry_edit import back_up


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the folder as it is to stand; ``before`` is what was there when that was planned, None for nothing.

    ``by_hand``: a person may have written what is there, so that a copy of it is kept.
    """

    name: str
    after: bytes
    before: bytes | None = None
    by_hand: bool = True

    @property
    def state(self) -> Literal["new", "changed", "unchanged"]:
        """What becomes of it."""
        return "new" if self.before is None else "unchanged" if self.before == self.after else "changed"


def read_file(path: Path) -> bytes | None:
    """Return what is in a file, None if there is none; raises ``OSError``."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_folder(folder: Path, files: Sequence[PlannedFile]) -> dict[str, Path]:
    """Write the files that are new or changed; returns the copies of those that were replaced, by name.

    A folder that is not there appears with all of them at once. Signals take effect when all is written.
    Raises ``OSError``, and ``ConfigurationError`` if a file has changed since it was planned: nothing is written then.
    """
    with undisturbed():
        if not folder.exists():
            _make(folder, files)
            return {}
        with locked(folder):
            return _replace(folder, files)


def _make(folder: Path, files: Sequence[PlannedFile]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir()
    try:
        for file in files:
            write_in_place(unfinished / file.name, file.after)
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _replace(folder: Path, files: Sequence[PlannedFile]) -> dict[str, Path]:
    for file in files:
        if read_file(folder / file.name) != file.before:
            raise ConfigurationError(
                f"{folder / file.name} was changed meanwhile, so nothing was written; run it again"
            )
    backups = {}
    for file in files:
        if file.state == "unchanged":
            continue
        if file.before is not None and file.by_hand:
            backups[file.name] = back_up(folder / file.name, file.before)
        write_in_place(folder / file.name, file.after)
    return backups
