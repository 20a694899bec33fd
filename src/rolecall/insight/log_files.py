"""All files of a request log at one moment: the present one, those that the recorder has rotated, and logrotate's.

They are opened, so that what is renamed, compressed or removed meanwhile is still read, once and as a whole.
"""

from __future__ import annotations

import errno
import math
import os
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from rolecall.gateway.rotating_file import COMPRESSED, siblings
from rolecall.insight.log_reader import (
    Compression,
    Part,
    blocks,
    oldest_first,
    open_parts,
    open_regular,
    parse_entry,
    parse_time,
)

if TYPE_CHECKING:
    from pathlib import Path

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_NOT_READ = frozenset(COMPRESSED) - _COMPRESSIONS.keys()
_TRIES = 5
_TS = re.compile(rb'"ts":\s*"([^"]{1,40})"')
_DURATION = re.compile(rb'"duration_ms":\s*(\d+(?:\.\d+)?)')
_EARLIEST_S, _LATEST_S = (datetime(year, 1, 1, tzinfo=timezone.utc).timestamp() for year in (2020, 9999))


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files that hold something, newest first, and why others, which look like a part of the log, are left out.

    ``parts`` are those that rolecall itself has written, empty ones too.
    """

    files: tuple[Part, ...]
    left_out: tuple[str, ...]
    parts: tuple[Part, ...]
    is_there: bool


def open_log(path: Path, stack: ExitStack, since: datetime | None = None) -> LogFiles:
    """Open all files of the log at ``path`` but those last written before ``since``; ``stack`` closes them.

    Raises FileNotFoundError if there are none, and OSError for one that the recorder wrote and that cannot be read.
    """
    for attempt in range(_TRIES):
        names = siblings(path)
        with ExitStack() as opened:
            found = _open_all(path, names, opened, since)
            if names == siblings(path) or attempt == _TRIES - 1:  # else something was compressed or moved meanwhile
                stack.push(opened.pop_all())
                break
    if found.is_there:
        return found
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _open_all(path: Path, names: list[str], stack: ExitStack, since: datetime | None) -> LogFiles:
    parts = open_parts(path, stack)
    known = {_identity(part.file.fileno()) for part in parts}
    files = [part for part in parts if _is_wanted(part.file.fileno(), since)]
    left_out = []
    for name in names:
        stem, dot, ending = name.rpartition(".")
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
            part = Part(file, os.fstat(file.fileno()).st_size, _COMPRESSIONS.get(dot + ending, "none"))
            if part.compression == "none" or not _is_made_of(part, path.with_name(stem)):
                files.append(part)
    if len(files) > 1:
        files.sort(key=lambda part: (part.name == path.name, begins(part)), reverse=True)
    return LogFiles(tuple(files), tuple(left_out), tuple(parts), bool(parts or names))


def _is_made_of(part: Part, path: Path) -> bool:
    """Whether a compressed file is made, or being made, of another one that is still there: both begin alike."""
    with ExitStack() as stack, suppress(OSError):
        other = open_regular(path, stack)
        if other is None:
            return False
        head, others = b"", next(blocks(Part(other, 0)), b"")
        with suppress(OSError):  # as long as it is being made
            head = next(blocks(part), b"")
        return not head or (others != b"" and (head.startswith(others) or others.startswith(head)))
    return False


def begins(part: Part) -> float:
    """Return when a file was begun (s since the epoch): its first line was written when that request was over.

    So a file has the same place among the others at every look, whatever it is called by then. One whose first line has
    no time of a log of rolecall's, as of a machine that did not know the date yet, counts by its last change.
    """
    head = b""
    with suppress(OSError):  # it is told when it is read
        head = next(blocks(part), b"").partition(b"\n")[0]
    ts, took = _TS.search(head), _DURATION.search(head)
    moment = ts and parse_time(ts[1].decode("ascii", "replace"))
    at = math.nan if moment is None else moment.timestamp() + (float(took[1]) / 1e3 if took else 0)
    return at if _EARLIEST_S <= at < _LATEST_S else os.fstat(part.file.fileno()).st_mtime


def is_first(part: Part) -> bool:
    """Whether a log began with this file, by what its first line says; raises OSError for one that cannot be read.

    Lines of versions that did not say it yet say nothing.
    """
    entry = parse_entry(next(oldest_first([part]), b""))
    return entry is not None and entry.fields.get("log_begins") is True


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _is_wanted(fd: int, since: datetime | None) -> bool:
    found = os.fstat(fd)
    return found.st_size > 0 and (since is None or found.st_mtime >= since.timestamp())
