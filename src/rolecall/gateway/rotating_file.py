"""A file of lines that several processes may append to, rotated by size: ``log.1`` newest … ``log.N`` oldest."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque
    from pathlib import Path

log = logging.getLogger(__name__)

COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".Z")
"""What names of files end with that logrotate has compressed."""
_MARK = b',"log_begins":true}\n'


class RotatingFile:
    """A file of lines, appended to and rotated by size. It blocks and belongs to one thread.

    Renamed, removed or truncated from outside (logrotate) it goes on in a new file at the same path. Several processes
    may write to one path: rotation is done by one of them at a time.

    Where there was nothing yet, neither the file nor an older one, its first line gets a last field ``log_begins``: so
    whoever reads it later knows that nothing is missing before it, however often it was rotated since.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self.path = path
        self.rotation_error: OSError | None = None
        self._max_bytes = max_bytes
        self._backups = backups
        self._fd: int | None = None
        self._may_begin = True

    def append(self, lines: deque[bytes]) -> None:
        """Write the lines, taking each from the left once it is in the file as a whole; no lines: only open it.

        Raises OSError with the lines that are not written still in the deque; the file holds whole lines only.
        """
        try:
            self._append(lines)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with suppress(OSError):  # network file systems report late errors here; the lines are written or put back
                os.close(fd)

    def _append(self, lines: deque[bytes]) -> None:
        while True:
            fd, size = self._current()
            if not lines:
                return
            if self._is_full(size, lines[0]) and self._rotate(fd):
                continue
            if self._may_begin and size == 0:
                lines[0] = _marked(lines[0])
            self._write(fd, size, lines, self._fitting(size, lines))

    def _current(self) -> tuple[int, int]:
        if self._fd is None or not self._is_at_path(self._fd):
            self.close()
            self._fd = self._open()
            self._end_half_line(self._fd)
            self._may_begin = self._may_begin and self._has_nothing(self._fd)
        return self._fd, os.fstat(self._fd).st_size

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _open(self) -> int:
        # Read and write: the last byte is looked at, and a named pipe opened so does not block until it has a reader.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        try:
            return os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, flags, 0o600)

    def _has_nothing(self, fd: int) -> bool:
        found = os.fstat(fd)
        with suppress(OSError):  # a folder that cannot be listed
            return stat.S_ISREG(found.st_mode) and found.st_size == 0 and not siblings(self.path)
        return False

    @staticmethod
    def _end_half_line(fd: int) -> None:
        """Start on a new line where a process killed while writing has left half of one."""
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size > 0 and os.pread(fd, 1, found.st_size - 1) != b"\n":
            os.write(fd, b"\n")

    def _write(self, fd: int, start: int, lines: deque[bytes], count: int) -> None:
        data = b"".join(islice(lines, count))
        done = 0
        try:
            while done < len(data):
                done += os.write(fd, data[done:])
        finally:
            whole = 0
            while lines and whole + len(lines[0]) <= done:
                whole += len(lines.popleft())
                self._may_begin = False
            if whole < done:
                self._cut(fd, start + whole, start + done)

    @staticmethod
    def _cut(fd: int, end: int, size: int) -> None:
        """Take back the half line at the end; if that cannot be done, the next open ends it with a newline."""
        with suppress(OSError):
            if os.fstat(fd).st_size == size:  # otherwise another process has appended behind it
                os.ftruncate(fd, end)

    def _is_full(self, size: int, line: bytes) -> bool:
        return self._may_rotate and size > 0 and size + len(line) > self._max_bytes

    @property
    def _may_rotate(self) -> bool:
        return self._max_bytes > 0 and self._backups > 0

    def _fitting(self, size: int, lines: deque[bytes]) -> int:
        """How many of the lines fit into the file; at least one, as a line is never split."""
        if not self._may_rotate or self.rotation_error:
            return len(lines)
        count = 0
        for line in lines:
            size += len(line)
            if size > self._max_bytes:
                break
            count += 1
        return max(count, 1)

    def _rotate(self, fd: int) -> bool:
        """Move the files on by one; False where that failed, and the present file grows beyond its size instead."""
        if not _lock(fd):
            return False
        try:
            if self._is_at_path(fd):  # otherwise another process has just rotated
                self._shift()
        except OSError as error:
            _unlock(fd)
            if self.rotation_error is None:
                log.warning("request log %s cannot be rotated and grows: %s", self.path, reason(error))
            self.rotation_error = error
            return False
        self.rotation_error = None
        self.close()
        return True

    def _shift(self) -> None:
        # Only up to the first free number: a rotation that fails half-way and is tried again must not push the older
        # files out one after the other.
        free = next((n for n in range(1, self._backups) if not self._numbered(n).exists()), self._backups)
        for number in range(free, 0, -1):
            self._numbered(number - 1).replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path


def _marked(line: bytes) -> bytes:
    """Return an object's line with the field; one that has it, or that is no object with fields, as it is."""
    is_bare = line.endswith(b"}\n") and not line.endswith((_MARK, b"{}\n"))
    return line[:-2] + _MARK if is_bare else line


def siblings(path: Path) -> list[str]:
    """Return the names of older files of a log: ``LOG.1.gz``, ``LOG-20261120``, ``LOG-20261120.zst`` and so on.

    What is rotated moves to a higher number: the order is that in which nothing is missed then.
    """
    date = r"\d{4}-?\d\d[\dTZ_:-]*"
    named = rf"{re.escape(path.name)}(?:\.\d{{1,6}}|[.-]{date})"
    dated = rf"{re.escape(path.stem)}[.-]{date}{re.escape(path.suffix)}"
    endings = "|".join(map(re.escape, COMPRESSED))
    pattern = re.compile(rf"(?:{named}|{dated})(?:{endings})?|{re.escape(path.name)}(?:{endings})")
    try:
        found = [sibling.name for sibling in path.parent.iterdir() if pattern.fullmatch(sibling.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda name: (len(name), name))


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: one process per log is then the rule
        return True
    return True


def _unlock(fd: int) -> None:
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def reason(error: OSError) -> str:
    """Return what the system says is wrong, without number and path."""
    return error.strerror or str(error)
