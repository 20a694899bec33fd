"""All files of a request log at one moment: the present one, those that the recorder has rotated, and logrotate's.

They are opened, so that what is renamed, compressed or removed meanwhile is still read, once and as a whole.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rolecall.insight.log_reader import open_parts, open_regular

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

Compression = Literal["none", "gzip", "zstd"]

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_NOT_READ = frozenset({".bz2", ".xz", ".lz4", ".Z"})
_TRIES = 5


@dataclass(frozen=True, slots=True)
class LogFile:
    """An open file of the log: its name, and a path that leads to it until it is closed, whatever its name is then."""

    name: str
    path: str
    compression: Compression


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files to read, and the reasons why others, which look like a part of the log, are left out."""

    files: tuple[LogFile, ...]
    left_out: tuple[str, ...]
    is_there: bool


def open_log(path: Path, stack: ExitStack, since: datetime | None = None) -> LogFiles:
    """Open all files of the log at ``path`` but those last written before ``since``; ``stack`` closes them.

    Raises FileNotFoundError if there are none, and OSError for one that the recorder wrote and that cannot be read.
    """
    for attempt in range(_TRIES):
        names = _siblings(path)
        with ExitStack() as opened:
            found = _open_all(path, names, opened, since)
            if names == _siblings(path) or attempt == _TRIES - 1:  # else something was compressed or moved meanwhile
                stack.push(opened.pop_all())
                break
    if found.is_there:
        return found
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _open_all(path: Path, names: list[str], stack: ExitStack, since: datetime | None) -> LogFiles:
    parts = open_parts(path, stack)
    known = {_identity(part.file.fileno()) for part in parts}
    files, left_out = [], []
    for part in parts:
        if _is_wanted(part.file.fileno(), since):
            name = os.path.basename(part.file.name)  # noqa: PTH119 - the path is a text here
            files.append(_log_file(name, part.file.fileno()))
    for name in names:
        stem, dot, ending = name.rpartition(".")
        if dot + ending in _COMPRESSIONS and (stem in names or path.with_name(stem).exists()):
            continue  # it is being made of the other
        if dot + ending in _NOT_READ:
            left_out.append(f"{name}: of compressed files only .gz and .zst are read")
            continue
        try:
            file = open_regular(path.with_name(name), stack)
        except OSError as error:
            left_out.append(f"{name}: {error.strerror}")
            continue
        if file is not None and _identity(file.fileno()) not in known and _is_wanted(file.fileno(), since):
            known.add(_identity(file.fileno()))
            files.append(_log_file(name, file.fileno(), _COMPRESSIONS.get(dot + ending, "none")))
    return LogFiles(tuple(files), tuple(left_out), bool(parts or names))


def _siblings(path: Path) -> list[str]:
    """Return the names of what may belong to the log: ``LOG.1.gz``, ``LOG-20261120``, ``LOG-20261120.zst`` and so on.

    What is rotated moves to a higher number: the order is that in which nothing is missed then.
    """
    date = r"\d{4}-?\d\d[\dTZ_:-]*"
    named = rf"{re.escape(path.name)}(?:\.\d{{1,6}}|[.-]{date})"
    dated = rf"{re.escape(path.stem)}[.-]{date}{re.escape(path.suffix)}"
    endings = "|".join(map(re.escape, [*_COMPRESSIONS, *_NOT_READ]))
    pattern = re.compile(rf"(?:{named}|{dated})(?:{endings})?|{re.escape(path.name)}(?:{endings})")
    try:
        found = [sibling.name for sibling in path.parent.iterdir() if pattern.fullmatch(sibling.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda name: (len(name), name))


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _is_wanted(fd: int, since: datetime | None) -> bool:
    found = os.fstat(fd)
    return found.st_size > 0 and (since is None or found.st_mtime >= since.timestamp())


def _log_file(name: str, fd: int, compression: Compression = "none") -> LogFile:
    return LogFile(name, f"/proc/self/fd/{fd}", compression)
