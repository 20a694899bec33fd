"""What a backup holds: the files of the config folder, of the state folder, and that of the API keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rolecall.runtime.state_folder import IN_USE
from rolecall.settings import Settings

DATASETS = "datasets/datasets.duckdb"
"""Copied by whoever holds it open: it cannot be read while it is written."""
SNAPSHOT = "." + DATASETS.rpartition("/")[2] + ".snapshot"
"""The name of that copy, beside them."""
_OF_DATASETS = frozenset({DATASETS, DATASETS + ".wal"})
_MADE_ANEW = ("engine-logs", "engines", "oneshot", "models", "demo", "datasets/thumbnails", "logs", IN_USE)
_ENVIRONMENT = "environment"
"""Where the units have the variables with keys for other servers."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file, and its name in the archive."""

    path: Path
    name: str


def items_of(settings: Settings) -> Iterator[Item]:
    """Yield what is backed up, but for the datasets."""
    config, state = settings.config_dir, settings.state_dir
    left_out = {state / name for name in _MADE_ANEW} | {settings.models_folder}
    is_log = _logs_of(settings)
    seen = set()
    for path in _files(config, left_out | {state}, follow=True):
        name = path.relative_to(config).as_posix()
        if not (name.endswith(".bak") or name == _ENVIRONMENT or is_log(path)):
            seen.add(path.resolve())
            yield Item(path, f"config/{name}")
    for path in _files(state, left_out | {config}):
        name = path.relative_to(state).as_posix()
        if not (name in _OF_DATASETS or ".jsonl" in path.name or is_log(path)):
            seen.add(path)
            yield Item(path, f"state/{name}")
    keys = key_file_of(settings)
    if keys is not None and keys.is_file() and keys.resolve() not in seen:
        in_config = config in keys.parents
        yield Item(keys, f"config/{keys.relative_to(config).as_posix()}" if in_config else f"keys/{keys.name}")


def key_file_of(settings: Settings) -> Path | None:
    """Return where the key file is, without ``..``."""
    return settings.api_keys_file and Path(os.path.normpath(settings.api_keys_file))


def _logs_of(settings: Settings) -> Callable[[Path], bool]:
    """Return whether a file belongs to the request log: its rotated files and the feedback on its requests do."""
    log = settings.log_path.absolute()
    folder, begin, feedback = log.parent.resolve(), log.name, f"{log.stem}.feedback"
    return lambda path: path.name.startswith((begin, feedback)) and path.parent.resolve() == folder


def _files(folder: Path, leave_out: set[Path], *, follow: bool = False) -> Iterator[Path]:
    """Yield the regular files below; names with a dot in front are half-written ones.

    With ``follow`` symbolic links are followed, each folder once.
    """
    been = {folder.resolve()}

    def is_to_be_read(path: Path) -> bool:
        real = path.resolve()
        if real in leave_out or real in been or (path.name.startswith(".") and not follow):
            return False
        been.add(real)
        return True

    for top, folders, names in os.walk(folder, followlinks=follow):
        here = Path(top)
        folders[:] = [name for name in sorted(folders) if is_to_be_read(here / name)]
        for path in (here / name for name in sorted(names) if not name.startswith(".")):
            if path.is_file() and (follow or not path.is_symlink()):
                yield path
