"""One file of a repository onto the disk: gone on with where it broke off, and compared with its digest."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rolecall.core.hub_listing import HubFile
from rolecall.hub.failures import HubError, HubInterruption, WrongContent

if TYPE_CHECKING:  # the library behind it is imported by those who have a hub
    from rolecall.hub.client import Hub, Repository

Report = Callable[[str, str, int, int], None]
"""Called with what is done ("fetching", "checking"), the file, how many bytes of it are done, and of how many."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CHUNK = 2**20


class NoRoom(HubError):
    """The disk is full."""


def fetch(hub: Hub, repository: Repository, file: HubFile, part: Path, report: Report) -> None:
    """Bring ``part`` to the length of a file; what is there already is kept and gone on with.

    Breaks are bridged, as long as something comes between two of them; raises `HubError` when that has no end. Then
    ``part`` holds what came.
    """
    _make_folder(part.parent)
    if size(part) > file.size_bytes:
        part.unlink()
    if not file.size_bytes:
        part.touch()
    tries = 0
    while (have := size(part)) < file.size_bytes:
        try:
            _receive(hub, repository, file, part, report)
        except HubInterruption as error:
            tries = 1 if size(part) > have else tries + 1
            hub.rest(error, tries)


def size(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise written(folder, error) from None


def _receive(hub: Hub, repository: Repository, file: HubFile, part: Path, report: Report) -> None:
    have = size(part)
    with hub.stream(repository, file.path, have) as incoming, _opened(part) as out:
        if incoming.total_bytes not in (None, file.size_bytes) or incoming.start not in (0, have):
            raise WrongContent(
                f"{repository.id} lists {file.path} with {file.size_bytes} bytes, and {incoming.total_bytes} are served"
            )
        out.truncate(incoming.start)  # it may not know how to go on, and begin anew
        at = out.seek(incoming.start)
        report("fetching", file.path, at, file.size_bytes)
        for chunk in incoming.chunks:
            if at + len(chunk) > file.size_bytes:
                raise WrongContent(f"{repository.id} lists {file.path} with {file.size_bytes} bytes, and more are sent")
            _write(out, chunk, part)
            at += len(chunk)
            report("fetching", file.path, at, file.size_bytes)
    if at < file.size_bytes:
        raise HubInterruption(f"{hub.endpoint} sent {at} bytes of the {file.size_bytes} of {file.path}")


def _opened(part: Path) -> BinaryIO:
    """Open a part to go on with it; it is made only now that something comes."""
    return os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


def _write(out: BinaryIO, chunk: bytes, part: Path) -> None:
    left = memoryview(chunk)
    while left:
        try:
            left = left[out.write(left) :]
        except OSError as error:
            raise written(part, error) from None


def written(path: Path, error: OSError) -> HubError:
    """Return in words why something was not written."""
    if error.errno in _FULL:
        return NoRoom(f"there is no more room for {path}: {error.strerror}")
    return HubError(f"{path} cannot be written: {error.strerror or error}")


def check(path: Path, file: HubFile, report: Report) -> None:
    """Compare a file with its length and digest; raises `WrongContent` that says how they differ, and ``OSError``."""
    there = path.stat().st_size
    if there != file.size_bytes:
        raise WrongContent(f"{path} has {there} bytes instead of {file.size_bytes}")
    if not file.key:
        return
    hashed = hashlib.sha256()
    if not file.sha256:  # how git names the content of small files
        hashed = hashlib.sha1(b"blob %d\0" % there, usedforsecurity=False)
    done = 0
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            hashed.update(chunk)
            done += len(chunk)
            report("checking", file.path, done, there)
    if hashed.hexdigest() != file.key:
        raise WrongContent(f"{path} has the hash {hashed.hexdigest()} instead of {file.key}")


def settle(part: Path, target: Path) -> None:
    """Give a complete file its name, once it is on the disk; raises `HubError`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("rb") as content:
            os.fsync(content.fileno())
        part.replace(target)
    except OSError as error:
        raise written(target, error) from None


def link(source: Path, target: Path) -> bool:
    """Give a file that is here another name; False where the file system has no such links."""
    with suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.link(source, target)
        return True
    return False
