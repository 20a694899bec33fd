"""XMP sidecars: keywords and a description beside a picture, where photographers' programs look for them.

``photo.jpg.xmp`` is what darktable and digiKam read and write. ``photo.xmp`` is Adobe's name; it is taken where it is
there and can mean no other picture, such as the raw file that was shot with a JPEG.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rolecall.vision.xmp import EMPTY, merge
from rolecall.vision.xmp_reader import XmpError

MAX_BYTES = 64 << 20
"""A sidecar with darktable's masks has some MB."""
_TRIES = 100
"""So often another program may write a sidecar between reading and writing it, until it is given up."""


class SidecarError(Exception):
    """A sidecar that cannot be read or written; it is as it was. The message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a sidecar: its path, the keywords that are new in it, and whether the description went in."""

    path: Path
    added: tuple[str, ...]
    described: bool


class Neighbours:
    """Which files lie beside a picture; each folder is listed once, as it is when it is first asked about."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, set[str]]] = {}

    def has_twin(self, picture: Path) -> bool:
        """Whether another file but sidecars has the picture's name up to the suffix."""
        folder = picture.parent
        if folder not in self._folders:
            self._folders[folder] = _by_stem(folder)
        return bool(self._folders[folder].get(picture.stem, set()) - {picture.name})


def _by_stem(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 - a Path of each of 100,000 names takes long
            if suffix.lower() != ".xmp":
                found.setdefault(stem, set()).add(entry.name)
    return found


def sidecar_path(picture: Path, neighbours: Neighbours | None = None) -> Path:
    """Return the sidecar that a picture has, or the one that it should get."""
    full, short = picture.with_name(picture.name + ".xmp"), picture.with_suffix(".xmp")
    for path in (full, full.with_suffix(".XMP")):
        if os.path.lexists(path):
            return path
    short = short if short.exists() else short.with_suffix(".XMP")
    return short if short.exists() and not (neighbours or Neighbours()).has_twin(picture) else full


def write_sidecar(
    picture: Path,
    keywords: Iterable[str] = (),
    description: str | None = None,
    *,
    replace: bool = False,
    neighbours: Neighbours | None = None,
) -> Written:
    """Add keywords, and a description where there is none, to a picture's sidecar; ``replace`` changes one there is.

    The file is replaced as a whole or stays. What another rolecall adds at the same time is kept. ``neighbours`` spares
    a run over many pictures to list their folder for each. Raises ``SidecarError``, also for a file that is no XMP, and
    ``OSError``.
    """
    named, words = sidecar_path(picture, neighbours), list(keywords)
    path = Path(os.path.realpath(named))
    shown = f"{named}, a link to {path}," if named.is_symlink() else str(named)
    for _ in range(_TRIES):
        before, state = _read(path, shown)
        try:
            after, (added, described) = merge(before or EMPTY, words, description, replace=replace)
        except XmpError as error:
            raise SidecarError(f"{shown}: {error}; it was left as it is") from None
        if not (added or described):
            return Written(path, added, described)
        try:
            if _replace(path, after, state):
                return Written(path, added, described)
        except OSError as error:
            raise SidecarError(f"{shown} cannot be written: {error.strerror}") from None
    raise SidecarError(f"{shown} is written by another program all the time; it was left as it is")


_State: TypeAlias = tuple[int, int, int] | None
"""Of a file its inode, its size in bytes and when it was written, in ns; None where there is none."""


def _state(found: os.stat_result) -> _State:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _state_now(path: Path) -> _State:
    try:
        return _state(path.stat())
    except FileNotFoundError:
        return None


def _read(path: Path, shown: str) -> tuple[bytes | None, _State]:
    """Return the content and the state of a file; None for both if there is none."""
    try:
        with open(path, "rb", opener=_unwaited) as file:
            found = os.fstat(file.fileno())
            is_file = stat.S_ISREG(found.st_mode)
            data = file.read(MAX_BYTES + 1) if is_file else b""
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise SidecarError(f"{shown} cannot be read: {error.strerror}") from None
    if not is_file:
        raise SidecarError(f"{shown} cannot be read: it is no file")
    if not data:
        raise SidecarError(f"{shown} is empty; remove it to get a new one")
    if len(data) > MAX_BYTES:
        raise SidecarError(f"{shown} has more than {MAX_BYTES >> 20} MB; it was left as it is")
    return data, _state(found)


def _unwaited(path: str, flags: int) -> int:
    """Open a file; a named pipe that nobody writes to is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _replace(path: Path, data: bytes, state: _State) -> bool:
    """Put a new file in the place of one that is in this state still; else return False."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(fd, "wb") as file:
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with _locked(path.parent):
            if _state_now(path) != state:
                return False
            temporary.replace(path)
            return True
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep out other rolecalls for a moment, where the file system has locks."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
