"""Who uses a state folder: servers share it, a restore has it alone."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rolecall.errors import ConfigurationError

IN_USE = ".in-use"
"""A file of the folder's that servers lock all the time.

The folder itself is locked for a moment alone, by whoever changes files in it: a restore, and a server that starts.
"""

_PATIENCE_S = 0.5
"""Others hold these locks for a moment, and a server that starts then is not to end for that."""


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Use the folder as a server does, beside others; raises ``ConfigurationError`` while it is being restored."""
    with ExitStack() as stack:
        with _locked(folder, fcntl.LOCK_SH) as is_free:
            if not (is_free and stack.enter_context(_locked(folder / IN_USE, fcntl.LOCK_SH, makes=True))):
                raise ConfigurationError(
                    f"state_dir: {folder} is being restored from a backup; start again when it is done"
                )
        yield


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep servers from using the folder; raises ``ConfigurationError`` if one does."""
    with _locked(folder, fcntl.LOCK_EX) as is_free, _locked(folder / IN_USE, fcntl.LOCK_EX, within_s=0) as is_unused:
        if not (is_free and is_unused):
            raise ConfigurationError(f"state_dir: a rolecall is running with {folder}; stop it first")
        yield


def is_in_use(folder: Path) -> bool:
    """Whether a server uses the folder."""
    with _locked(folder / IN_USE, fcntl.LOCK_EX, within_s=0) as is_unused:
        return not is_unused


@contextmanager
def _locked(path: Path, kind: int, *, within_s: float = _PATIENCE_S, makes: bool = False) -> Iterator[bool]:
    """Yield whether it is locked; what is not there, or cannot be, is nobody's and counts as locked."""
    try:
        fd = os.open(path, os.O_RDONLY | (os.O_CREAT if makes else 0), 0o644)
    except OSError:
        yield True
        return
    try:
        until = time.monotonic() + within_s
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
