"""Records on the disk: JSON lines and CSV, to which one whole line at a time is added.

A line goes to the kernel in one piece, or not at all: where the disk is full the file is cut back to the line before.
What a killed process left of a line is cut off when the file is opened again. So every line but those is a record.
A record that is made anew is added like any other; the one before is left out when the file is tidied at the end.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from rolecall.vision.batch_record import COLUMNS, Key, Record, from_json, to_json
from rolecall.vision.writers_cells import from_cells, to_cells


class OutputError(Exception):
    """The output cannot be used or written; the message says why and what to do. What was written stays."""


class OutputRefused(OutputError):
    """The path cannot be meant: another kind of file, or one that is there and was not to be continued."""


class Output(Protocol):
    """Where records go."""

    def records(self) -> Iterator[Record]:
        """Yield the records that are there, the latest one of each key last; raises ``OutputError``."""

    def add(self, record: Record) -> None:
        """Write a record down, so that it survives the end of this process; raises ``OutputError``."""

    def close(self) -> None:
        """Leave one record of each key, and all of them on the disk; raises ``OutputError``."""


def open_output(path: Path, *, resume: bool) -> Output:
    """Return the output for a path, by its suffix: ``.jsonl``, ``.csv`` or ``.duckdb``.

    Raises ``OutputError``: for another suffix, for a file that is there without ``resume``, or that cannot be used.
    """
    kind = path.suffix.lower()
    if kind == ".duckdb":
        from rolecall.vision.writers_duckdb import DuckDbOutput  # noqa: PLC0415 - it takes 100 ms and 40 MB to import

        return DuckDbOutput(path, resume=resume)
    if kind in {".jsonl", ".ndjson"}:
        return JsonLines(path, resume=resume)
    if kind == ".csv":
        return Csv(path, resume=resume)
    raise OutputRefused(f"{path}: --out takes a file that ends in .jsonl, .csv or .duckdb")


def exists(path: Path) -> OutputRefused:
    """Return the error for a file that is there."""
    return OutputRefused(f"{path} is there already: --resume continues it; or name another file")


class _Lines:
    """A file of lines that one process writes."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | (0 if resume else os.O_EXCL)
        try:
            self._fd = os.open(path, flags, 0o666)
        except FileExistsError:
            raise exists(path) from None
        except OSError as error:
            raise OutputError(f"{path}: it cannot be opened: {error.strerror}") from None
        try:
            self._begin()
        except BaseException:
            os.close(self._fd)
            raise

    def _begin(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{self._path}: another run is writing it") from None
        except OSError:  # a file system without locks
            pass
        self._seen: set[Key] = set()
        self._superseded = False
        self._size = self._end_of_whole_lines()
        os.ftruncate(self._fd, self._size)
        if not self._size:
            self._write(self._head())

    def add(self, record: Record) -> None:
        """Write a record down."""
        self._write(self._line(record))
        self._superseded |= record.key in self._seen
        self._seen.add(record.key)

    def records(self) -> Iterator[Record]:
        """Yield the records that are there."""
        with self._path.open("rb") as file:
            for number, line in self._numbered(file.read(self._size)):
                try:
                    record = self._record(line)
                except (ValueError, RecursionError) as error:
                    raise OutputError(
                        f"{self._path}: record {number} is none ({error}); is it another program's file? "
                        "Name another one, or take the line out"
                    ) from None
                self._superseded |= record.key in self._seen
                self._seen.add(record.key)
                yield record

    def close(self) -> None:
        """Leave one record of each key."""
        try:
            if self._superseded:
                self._tidy()
            else:
                os.fsync(self._fd)
        except OSError as error:
            raise OutputError(f"{self._path}: {_cause(error)}; all records are in it, some twice") from None
        finally:
            os.close(self._fd)

    def _tidy(self) -> None:
        data = self._path.read_bytes()
        last = {self._record(line).key: number for number, line in self._numbered(data)}
        kept = set(last.values())
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                os.fchmod(file.fileno(), os.fstat(self._fd).st_mode & 0o7777)
                file.write(self._head())
                file.writelines(line for number, line in self._numbered(data) if number in kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path.resolve())
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        """Add bytes, all of them or none."""
        try:
            written = 0
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise OutputError(f"{self._path}: {_cause(error)}") from None
        self._size += len(data)

    def _end_of_whole_lines(self) -> int:
        raise NotImplementedError

    def _head(self) -> bytes:
        return b""

    def _line(self, record: Record) -> bytes:
        raise NotImplementedError

    def _record(self, line: bytes) -> Record:
        raise NotImplementedError

    def _numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each record's bytes with its end, counted from 1."""
        raise NotImplementedError


def _cause(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"the disk is full ({error.strerror}): make room and go on with --resume"
    return f"it cannot be written: {error.strerror}"


class JsonLines(_Lines):
    """One JSON object a line."""

    def _end_of_whole_lines(self) -> int:
        return self._path.read_bytes().rfind(b"\n") + 1

    def _line(self, record: Record) -> bytes:
        return to_json(record).encode() + b"\n"

    def _record(self, line: bytes) -> Record:
        return from_json(line)

    def _numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        yield from ((number, line) for number, line in enumerate(io.BytesIO(data), 1) if line.strip())


class Csv(_Lines):
    """The same as a table with a head, whose cells are those of ``cells.to_cells``."""

    def _head(self) -> bytes:
        return _csv_line(COLUMNS)

    def _line(self, record: Record) -> bytes:
        return _csv_line(to_cells(record))

    def _record(self, line: bytes) -> Record:
        return from_cells(next(csv.reader(io.StringIO(line.decode(), newline=""))))

    def _numbered(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        rows = _rows(data)
        if next(rows, self._head()) != self._head():
            raise OutputError(f"{self._path}: its first line is not that of rolecall's records; name another file")
        yield from enumerate(rows, 1)

    def _end_of_whole_lines(self) -> int:
        return sum(map(len, _rows(self._path.read_bytes())))


def _csv_line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _rows(data: bytes) -> Iterator[bytes]:
    """Yield the rows that are complete; a line end between quotes belongs to its cell."""
    row, quotes = b"", 0
    for line in io.BytesIO(data):
        row += line
        quotes += line.count(b'"')
        if quotes % 2 == 0 and line.endswith(b"\n"):
            yield row
            row = b""
