"""Who uses a state folder: servers share it, a restore has it alone."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rolecall.errors import ConfigurationError

_PATIENCE_S = 0.5
"""``is_in_use`` has a folder alone for a moment, and a server that starts in it is not to end for that."""


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Use the folder as a server does, beside others; raises ``ConfigurationError`` while it is being restored."""
    with _locked(folder, fcntl.LOCK_SH, _PATIENCE_S) as is_locked:
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
def _locked(folder: Path, kind: int, patience_s: float = 0) -> Iterator[bool]:
    """Yield whether the folder is locked; one that is not there, or cannot be, is nobody's and counts as locked."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield True
        return
    try:
        until = time.monotonic() + patience_s
        while not (is_locked := _lock(fd, kind)) and time.monotonic() < until:
            time.sleep(0.01)
        yield is_locked
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
