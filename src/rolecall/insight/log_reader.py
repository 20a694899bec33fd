"""Reads the request log: over its files either way, forwards as it grows, and picks lines by what they hold."""

from __future__ import annotations

import errno
import itertools
import operator
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import orjson

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 2**16

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log: its bytes without the newline, and what they say."""

    raw: bytes
    fields: Fields


def parse_entry(raw: bytes) -> Entry | None:
    """Return the line's entry; None for half a line, or for one that is no record of a request."""
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    known = isinstance(fields, dict) and isinstance(fields.get("ts"), str) and "request_id" in fields
    return Entry(raw, fields) if known else None


def parse_time(text: str) -> datetime | None:
    """Return an ISO 8601 time in UTC, read as local where it names no zone; None if it is none."""
    try:
        # Python 3.10 does not read the Z.
        return datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


# --- which lines ------------------------------------------------------------------------------------------------------

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "!=": operator.ne}
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _is_ok(fields: Fields) -> bool:
    status = fields.get("status")
    return isinstance(status, int) and status < 400 and not fields.get("error")


def parse_status(text: str) -> Callable[[Fields], bool]:
    """Return the test that a ``--status`` stands for; raises ValueError.

    ``404``, ``4xx``, ``>=400`` (also ``<=``, ``>``, ``<``, ``!=``), ``ok`` (below 400 and complete) or ``error`` (all
    others: a stream that broke off has status 200 and an error).
    """
    if text == "ok":
        return _is_ok
    if text == "error":
        return lambda fields: not _is_ok(fields)
    if re.fullmatch("[1-5]xx", text):
        return lambda fields: isinstance(fields.get("status"), int) and fields["status"] // 100 == int(text[0])
    found = re.fullmatch(r"(>=|<=|>|<|!=|)\s*(\d{3})", text)
    if found is None:
        raise ValueError(f"{text!r} is no status: 404, 4xx, >=400, ok or error")
    compare, code = _COMPARISONS.get(found[1], operator.eq), int(found[2])
    return lambda fields: isinstance(fields.get("status"), int) and compare(fields["status"], code)


def parse_since(text: str, now: datetime) -> datetime:
    """Return the time that a ``--since`` means at ``now``; raises ValueError.

    A duration (``30s``, ``10m``, ``1h30m``, ``2d``, ``1w``) or an ISO time, local where it names no zone.
    """
    if re.fullmatch(r"(\d+[smhdw])+", text):
        parts = re.findall(r"(\d+)([smhdw])", text)
        try:
            return now - timedelta(seconds=sum(int(count) * _UNITS_S[unit] for count, unit in parts))
        except OverflowError:
            return datetime.fromtimestamp(0, timezone.utc)
    time = parse_time(text)
    if time is None:
        raise ValueError(f"{text!r} is no time: 10m, 2h, 1d, 30s, or 2026-01-31T12:00")
    return time


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines are asked for; None asks for all. Model and role may hold the wildcards of a shell."""

    model: str | None = None
    role: str | None = None
    status: Callable[[Fields], bool] | None = None
    since: datetime | None = None

    def __call__(self, fields: Fields) -> bool:
        """Whether the line is one of them; a model is looked for in what was served and in what was asked for."""
        return (
            (self.model is None or any(_is_like(fields.get(key), self.model) for key in ("model", "requested_model")))
            and (self.role is None or _is_like(fields.get("role"), self.role))
            and (self.status is None or self.status(fields))
            and (self.since is None or _is_after(fields["ts"], self.since))
        )


def _is_like(value: object, pattern: str) -> bool:
    return isinstance(value, str) and (value == pattern or fnmatchcase(value, pattern))


def _is_after(text: str, since: datetime) -> bool:
    time = parse_time(text)
    return time is not None and time >= since


# --- what there is ----------------------------------------------------------------------------------------------------

Compression = Literal["none", "gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class Part:
    """One open file of the log, and where reading it backwards starts (bytes); of a compressed one all is read."""

    file: BinaryIO
    end: int
    compression: Compression = "none"

    @property
    def name(self) -> str:
        """What it was called when it was opened."""
        return os.path.basename(self.file.name)  # noqa: PTH119 - the path is a text here

    @property
    def path(self) -> str:
        """A path that leads to it until it is closed, whatever its name is then."""
        return f"/proc/self/fd/{self.file.fileno()}"


def open_parts(path: Path, stack: ExitStack) -> list[Part]:
    """Open the log and its rotated files, newest first; the stack closes them. Empty: there are none.

    Raises OSError for a file that cannot be read.
    """
    parts: dict[tuple[int, int], Part] = {}
    for file in _opened(path, stack):
        if file is not None:
            found = os.fstat(file.fileno())
            parts.setdefault((found.st_dev, found.st_ino), Part(file, found.st_size))
    return list(parts.values())


def _opened(path: Path, stack: ExitStack) -> Iterator[BinaryIO | None]:
    """Open upwards from the log itself, until there is no higher number.

    Rotation moves files up: one that moves meanwhile is met once more, under its new number, and none is missed.
    """
    yield open_regular(path, stack)
    last = max(_numbers(path), default=0)
    for number in itertools.count(1):
        file = open_regular(path.with_name(f"{path.name}.{number}"), stack)
        if file is None and number > last:
            return
        yield file


def open_regular(path: Path, stack: ExitStack) -> BinaryIO | None:
    """Open a file for reading; None where there is none. Raises OSError for what cannot be read, or is no file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for its writer
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return stack.enter_context(path.open("rb", buffering=0))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _numbers(path: Path) -> list[int]:
    pattern = re.compile(re.escape(path.name) + r"\.([1-9]\d{0,5})")
    try:
        found = [pattern.fullmatch(sibling.name) for sibling in path.parent.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = sorted(int(match[1]) for match in found if match)
    return [*numbers, numbers[-1] + 1] if numbers else []  # one more: a rotation meanwhile moves the oldest on


# --- either way -------------------------------------------------------------------------------------------------------


def lines_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield the lines before ``end``, last first, reading by blocks; empty lines are left out."""
    tail = b""
    size = _BLOCK
    while end > 0:
        start = max(0, end - size)
        file.seek(start)
        first, *lines = (file.read(end - start) + tail).split(b"\n")
        yield from filter(None, reversed(lines))
        tail, end = first, start
        size = _BLOCK if lines else size * 2  # a line of many MB is not joined block by block
    if tail:
        yield tail


def newest_first(parts: Iterable[Part]) -> Iterator[bytes]:
    """Yield the lines of all parts, newest first; raises OSError for a compressed one that is broken."""
    for part in parts:
        if part.compression == "none":
            yield from lines_backwards(part.file, part.end)
        else:
            from rolecall.insight.log_unpacking import unpacked_copy  # noqa: PLC0415 - most logs have no such file

            with unpacked_copy(part.file, part.compression) as copy:
                yield from lines_backwards(copy, copy.seek(0, os.SEEK_END))


def oldest_first(parts: Sequence[Part]) -> Iterator[bytes]:
    """Yield the lines of all parts, which are given newest first, as they were written; raises as `newest_first`."""
    for part in reversed(parts):
        yield from _lines(blocks(part))


def blocks(part: Part) -> Iterator[bytes]:
    """Yield what a file holds, from its beginning; raises OSError for a compressed one that is broken."""
    if part.compression != "none":
        from rolecall.insight.log_unpacking import unpacked  # noqa: PLC0415 - most logs have no such file

        yield from unpacked(part.file, part.compression)
        return
    part.file.seek(0)
    while block := part.file.read(_BLOCK):
        yield block


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from filter(None, lines)
    yield from filter(None, [rest])


class LineFilter:
    """Parses lines, keeps the wanted ones and counts those that are none."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.skipped = 0

    def __call__(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        """Yield the entries that are wanted, in the order of the lines."""
        for line in lines:
            entry = parse_entry(line)
            if entry is None:
                self.skipped += 1
            elif self.wanted(entry.fields):
                yield entry

    def last(self, parts: Iterable[Part], count: int) -> list[Entry]:
        """Return the last ``count`` wanted entries, oldest first."""
        return list(islice(self(newest_first(parts)), count))[::-1]


def find_request(parts: Iterable[Part], request_id: str) -> list[Entry]:
    """Return the newest entry of that id; else the newest entry of each id that starts so, newest first."""
    start = orjson.dumps(request_id)[:-1]
    found: dict[str, Entry] = {}
    for entry in filter(None, map(parse_entry, (line for line in newest_first(parts) if start in line))):
        name = entry.fields["request_id"]
        if name == request_id:
            return [entry]
        if isinstance(name, str) and name.startswith(request_id):
            found.setdefault(name, entry)
    return list(found.values())


# --- forwards ---------------------------------------------------------------------------------------------------------


class Tail:
    """The growing end of a log, read by polling, through rotation, removal and truncation.

    Polling works on every file system, network and overlay ones included, and before the file exists.
    """

    def __init__(self, path: Path, parts: Sequence[Part], stack: ExitStack) -> None:
        """Start behind the last whole line of the newest part; without parts, at the start of what will come."""
        self._path = path
        self._file = parts[0].file if parts else None
        self._position = parts[0].end - len(_half_line(parts[0])) if parts else 0
        self._half = b""
        self._opened = ExitStack()
        stack.callback(self._close)

    def before(self, parts: Iterable[Part]) -> list[Part]:
        """Return the parts without what new_lines() is going to yield."""
        return [replace(part, end=self._position) if part.file is self._file else part for part in parts]

    def new_lines(self) -> Iterator[bytes]:
        """Yield the whole lines written since the last call. Raises OSError for a file that cannot be read."""
        yield from self._read()
        if not self._has_newer():
            return
        with ExitStack() as stack:
            newer = self._newer(open_parts(self._path, stack))
            for part in reversed(newer):
                yield from self._read()  # what came before the rotation was noticed
                yield from filter(None, [self._half])
                self._file, self._position, self._half = part.file, 0, b""
            if newer:
                self._close()
                self._opened = stack.pop_all()
        yield from self._read()

    def _close(self) -> None:
        self._opened.close()

    def _read(self) -> Iterator[bytes]:
        if self._file is None:
            return
        if os.fstat(self._file.fileno()).st_size < self._position:  # truncated from outside
            self._position, self._half = 0, b""
        self._file.seek(self._position)
        while block := self._file.read(_BLOCK):
            self._position += len(block)
            *lines, self._half = (self._half + block).split(b"\n")
            yield from filter(None, lines)

    def _has_newer(self) -> bool:
        try:
            there = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return self._file is None or not os.path.samestat(there, os.fstat(self._file.fileno()))

    def _newer(self, parts: list[Part]) -> list[Part]:
        if self._file is None:
            return parts
        own = os.fstat(self._file.fileno())
        for index, part in enumerate(parts):
            if os.path.samestat(own, os.fstat(part.file.fileno())):
                return parts[:index]
        return parts[:1]  # ours was removed, and older ones have been read or are older than the start


def _half_line(part: Part) -> bytes:
    """The line at the end that has no newline yet."""
    part.file.seek(max(0, part.end - 1))
    ended = part.end == 0 or part.file.read(1) == b"\n"
    return b"" if ended else next(lines_backwards(part.file, part.end), b"")
