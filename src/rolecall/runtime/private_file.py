"""Files replaced whole or not at all: those that belong to their owner alone, and those that others edit as well."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rolecall.errors import naming


def write_privately(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that readers see the old or the new content, never a part of it.

    A file that was there keeps its owner, so that root may change what a service reads; of a new one see
    ``give_to_owner_of``. Raises ``OSError``.
    """
    _replace(path.resolve(), text.encode(), 0o600)


def write_in_place(path: Path, data: bytes) -> None:
    """Write a file in one step that keeps its mode, its owner and the symbolic links that lead to it.

    A new one is like any other file of this user, or of the folder's if root writes it. What is no regular file, such
    as a device or a pipe, is written to as it is. Raises ``OSError``.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data, None)
        return
    if stat.S_ISREG(mode):
        _replace(path.resolve(), data, stat.S_IMODE(mode))
    else:
        with naming(path):
            path.write_bytes(data)


def _replace(path: Path, data: bytes, mode: int | None) -> None:
    """Write a file beside ``path``, which is no symbolic link, and put it in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666 if mode is None else 0o600)
    try:
        with naming(path), os.fdopen(fd, "wb") as file:
            try:
                before = path.stat()
            except OSError:
                give_to_owner_of(path.parent, file.fileno())
            else:
                with suppress(OSError):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # Ctrl-C leaves nothing behind either
        temporary.unlink(missing_ok=True)
        raise


def give_to_owner_of(folder: Path, made: Path | int) -> None:
    """Have what root makes in a folder belong to the folder's owner, who is to use it; others make what is theirs."""
    if os.geteuid() == 0:
        with suppress(OSError):  # a file system without owners
            owner = folder.stat()
            os.chown(made, owner.st_uid, owner.st_gid)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep out everybody else who changes files of this folder under the same lock; one that is not there has none."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
