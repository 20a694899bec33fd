"""Who uses a state folder: servers share it, a restore has it alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rolecall.errors import ConfigurationError


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Use the folder as a server does, beside others; raises ``ConfigurationError`` while it is being restored."""
    with _locked(folder, fcntl.LOCK_SH) as is_locked:
        if not is_locked:
            raise ConfigurationError(
                f"state_dir: {folder} is being restored from a backup; start again when it is done"
            )
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep servers from using the folder; raises ``ConfigurationError`` if one does."""
    with _locked(folder, fcntl.LOCK_EX) as is_locked:
        if not is_locked:
            raise ConfigurationError(f"state_dir: a rolecall is running with {folder}; stop it first")
        yield


def is_in_use(folder: Path) -> bool:
    """Whether a server uses the folder."""
    with _locked(folder, fcntl.LOCK_EX) as is_locked:
        return not is_locked


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[bool]:
    """Yield whether the folder is locked; one that is not there, or cannot be, is nobody's and counts as locked."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield True
        return
    try:
        yield _lock(fd, kind)
    finally:
        os.close(fd)


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return True
    return True
