"""Records on the disk: JSON lines and CSV, to which one whole line at a time is added.

A line goes to the kernel in one piece, or not at all: where the disk is full the file is cut back to the line before.
What a killed process left of a line is cut off when the file is opened again, once all before it was read as records:
of another program's file not one byte is touched.
A record that is made anew is added like any other; the one before is left out when the file is tidied at the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from rolecall.vision.batch_record import Key, Record
from rolecall.vision.writers_forms import Csv, Form, JsonLines


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
    form = _form(path)
    if form is not None:
        return Lines(path, form, resume=resume)
    from rolecall.vision.writers_duckdb import DuckDbOutput  # noqa: PLC0415 - it takes 100 ms and 40 MB to import

    return DuckDbOutput(path, resume=resume)


def read_output(path: Path) -> list[Record]:
    """Return the records of an output, which is not touched, none where there is none; raises ``OutputError``."""
    form = _form(path)
    if not path.exists():
        return []
    if form is not None:
        data = path.read_bytes()
        return list(_records(path, form, data[: _whole(path, form, data)]))
    from rolecall.vision.writers_duckdb import read_database  # noqa: PLC0415 - see above

    return read_database(path)


def _form(path: Path) -> Form | None:
    """Return the form of a file's lines; None for a database."""
    kind = path.suffix.lower()
    if kind == ".duckdb":
        return None
    if kind in {".jsonl", ".ndjson"}:
        return JsonLines()
    if kind == ".csv":
        return Csv()
    raise OutputRefused(f"{path}: --out takes a file that ends in .jsonl, .csv or .duckdb")


def exists(path: Path) -> OutputRefused:
    """Return the error for a file that is there."""
    return OutputRefused(f"{path} is there already: --resume continues it; or name another file")


def _whole(path: Path, form: Form, data: bytes) -> int:
    """Return how many bytes are whole records; raises ``OutputError`` if what comes after them is not of a record."""
    size = form.whole(data)
    try:
        form.check_rest(data[size:], size)
    except ValueError as error:
        raise OutputError(_not_ours(path, str(error))) from None
    return size


def _records(path: Path, form: Form, data: bytes) -> Iterator[Record]:
    number = 0
    try:
        for at, line in form.numbered(data):
            number = at
            yield form.record(line)
    except (ValueError, RecursionError) as error:
        where = f"record {number} is none ({error})" if number else str(error)
        raise OutputError(_not_ours(path, where)) from None


def _not_ours(path: Path, why: str) -> str:
    return f"{path}: {why}; is it another program's file? Name another one, or mend the line"


class Lines:
    """A file of lines that one process writes."""

    def __init__(self, path: Path, form: Form, *, resume: bool) -> None:
        self._path = path
        self._form = form
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
        data = self._path.read_bytes()
        self._size = _whole(self._path, self._form, data)
        for record in _records(self._path, self._form, data[: self._size]):  # raises before anything is cut
            self._note(record)
        os.ftruncate(self._fd, self._size)
        if not self._size:
            self._write(self._form.head)

    def add(self, record: Record) -> None:
        """Write a record down."""
        self._write(self._form.line(record))
        self._note(record)

    def _note(self, record: Record) -> None:
        self._superseded |= record.key in self._seen
        self._seen.add(record.key)

    def records(self) -> Iterator[Record]:
        """Yield the records that are there."""
        yield from _records(self._path, self._form, self._path.read_bytes()[: self._size])

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
        last = {self._form.record(line).key: number for number, line in self._form.numbered(data)}
        kept = set(last.values())
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                os.fchmod(file.fileno(), os.fstat(self._fd).st_mode & 0o7777)
                file.write(self._form.head)
                file.writelines(line for number, line in self._form.numbered(data) if number in kept)
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


def _cause(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"the disk is full ({error.strerror}): make room and go on with --resume"
    return f"it cannot be written: {error.strerror}"
