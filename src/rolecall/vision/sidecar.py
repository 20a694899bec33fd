"""XMP sidecars: keywords and a description beside a picture, where photographers' programs look for them.

``photo.jpg.xmp`` is what darktable and digiKam read and write. ``photo.xmp`` is Adobe's name; it is taken where it is
there and can mean no other picture, such as the raw file that was shot with a JPEG.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rolecall.vision.xmp import EMPTY, merge
from rolecall.vision.xmp_reader import XmpError

MAX_BYTES = 64 << 20
"""A sidecar with darktable's masks has some MB."""


class SidecarError(Exception):
    """A sidecar that cannot be read or written; it is as it was. The message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a sidecar: its path, the keywords that are new in it, and whether the description went in."""

    path: Path
    added: tuple[str, ...]
    described: bool


def sidecar_path(picture: Path) -> Path:
    """Return the sidecar that a picture has, or the one that it should get."""
    full, short = picture.with_name(picture.name + ".xmp"), picture.with_suffix(".xmp")
    for path in (full, full.with_suffix(".XMP")):
        if path.exists():
            return path
    short = short if short.exists() else short.with_suffix(".XMP")
    return short if short.exists() and _is_alone(picture) else full


def _is_alone(picture: Path) -> bool:
    """Whether no other file but sidecars has the picture's name up to the suffix."""
    with os.scandir(picture.parent) as entries:
        names = [Path(entry.name) for entry in entries]
    return not any(
        name.stem == picture.stem and name.name != picture.name and name.suffix.lower() != ".xmp" for name in names
    )


def write_sidecar(
    picture: Path, keywords: Iterable[str] = (), description: str | None = None, *, replace: bool = False
) -> Written:
    """Add keywords, and a description where there is none, to a picture's sidecar; ``replace`` changes one there is.

    The file is replaced as a whole or stays. Raises ``SidecarError``, also for a file that is no XMP, and ``OSError``.
    """
    path = sidecar_path(picture).resolve()
    before = _read(path)
    try:
        after, (added, described) = merge(before or EMPTY, keywords, description, replace=replace)
    except XmpError as error:
        raise SidecarError(f"{path}: {error}; it was left as it is") from None
    if added or described:
        _replace(path, after)
    return Written(path, added, described)


def _read(path: Path) -> bytes | None:
    """Return the content; None if there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if not data:
        raise SidecarError(f"{path} is empty; remove it to get a new one")
    if len(data) > MAX_BYTES:
        raise SidecarError(f"{path} has more than {MAX_BYTES >> 20} MB; it was left as it is")
    return data


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(fd, "wb") as file:
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
