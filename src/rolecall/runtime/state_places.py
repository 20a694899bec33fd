"""Putting unpacked files back into their places: all of them, or none if that fails."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from rolecall.runtime.interruption import undisturbed
from rolecall.runtime.private_file import give_to_owner_of
from rolecall.runtime.state_archive import TOPS

Make = Callable[[Path, int], None]
"""Makes a folder of that mode, with those above it, unless it is there."""
_MODE = 0o777


def places(unpacked: Path, targets: Mapping[str, Path]) -> dict[Path, Path]:
    """Return the unpacked file for each place; ``targets`` has a folder for each top folder.

    Of two files with one place the one of the later top folder is taken: keys that were in force go before others.
    """
    return {
        targets[top] / path.relative_to(unpacked / top): path
        for top in TOPS
        for path in sorted((unpacked / top).rglob("*"))
        if path.is_file()
    }


@contextmanager
def making_folders() -> Iterator[Make]:
    """Yield how to make folders; if something goes wrong afterwards, those that are still empty are taken away again.

    Run by root, each gets the owner of the folder that it comes into.
    """
    made: list[Path] = []

    def make(folder: Path, mode: int) -> None:
        for each in reversed(list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))):
            each.mkdir(mode if each == folder else _MODE)
            made.append(each)
            give_to_owner_of(each.parent, each)

    try:
        yield make
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def put_all(files: Mapping[Path, Path], database: Path, make: Make) -> None:
    """Move each file to its place, over what is there; run by root, it gets the owner of the folder it comes into.

    Each is written beside its place first. So what needs room or rights fails before anything has changed, with an
    ``OSError`` that names the place. If a file takes the place of ``database``, DuckDB's log beside it goes as well: it
    belongs to the old one.
    """
    beside: list[tuple[Path, Path]] = []
    try:
        for target, source in files.items():
            make(target.parent, _MODE)
            partial = _partial(target)
            beside.append((partial, target))
            _prepare(source, partial, target)
        with undisturbed():
            for partial, target in beside:
                if target == database:
                    _replace_database(partial, target)
                else:
                    partial.replace(target)
    except BaseException:
        for partial, _ in beside:
            partial.unlink(missing_ok=True)
        raise


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")


def _prepare(source: Path, partial: Path, target: Path) -> None:
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        shutil.move(source, partial)  # within a file system it takes no more room
        give_to_owner_of(target.parent, partial)
        fd = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None


def _replace_database(partial: Path, database: Path) -> None:
    log = database.with_name(f"{database.name}.wal")
    aside = _partial(log)
    with suppress(FileNotFoundError):
        log.replace(aside)
    try:
        partial.replace(database)
    except BaseException:
        with suppress(FileNotFoundError):
            aside.replace(log)
        raise
    aside.unlink(missing_ok=True)
