"""The folder of a dataset: which pictures lie in it, and how one is opened without ever leaving it.

A name may have been a picture when the folder was scanned and lead elsewhere when it is read. So nothing is looked up
by a whole path: folder by folder is opened, and none of them, nor the file, may be a symbolic link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rolecall.errors import BadRequest
from rolecall.vision.datasets_records import FileFacts
from rolecall.vision.photos import SUFFIXES, PhotoError

MAX_FILES = 200_000
"""Pictures of one dataset."""
MAX_ENTRIES = 2_000_000
"""Files and folders that are looked at before a folder is taken for none of pictures, such as ``/``."""
_MAX_DEPTH = 64
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a named pipe is not to be waited for


@dataclass(frozen=True, slots=True)
class Scan:
    """What a folder holds: its pictures by name, and how many were left out: links, names that are no text."""

    files: tuple[FileFacts, ...]
    skipped: int


def checked_folder(text: str) -> Path:
    """Return the folder, whole and without links; raises ``BadRequest`` if there is none that can be read."""
    if "\0" in text or not text.strip():
        raise BadRequest("folder must name a folder on the machine that rolecall runs on.", param="folder")
    given = Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for a user that does not exist
    if not given.is_absolute():
        raise BadRequest(f"folder must be a whole path, such as /home/me/photos, not {text[:200]!r}.", param="folder")
    if ".." in given.parts:
        raise BadRequest("folder must not have .. in it; name the folder itself.", param="folder")
    try:
        folder = given.resolve(strict=True)
        os.close(os.open(folder, _FOLDER))
        str(folder).encode()
    except UnicodeError:
        raise BadRequest("The folder's name is not UTF-8; give it another one.", param="folder") from None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadRequest(
            f"The folder {text[:200]!r} cannot be used: {reason}. It must exist on the machine that rolecall runs on, "
            "and the user that runs it must be able to read it.",
            param="folder",
        ) from None
    return folder


def scan(folder: Path, most: int = MAX_FILES) -> Scan:
    """Return the pictures in a folder and those below it, hidden ones left out; raises ``BadRequest`` for too many.

    Pictures are told by the ends of their names; whether they can be read is found out when they are.
    """
    files: list[FileFacts] = []
    skipped = seen = 0
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            entries = list(os.scandir(folder / below))
        except OSError:
            skipped += 1
            continue
        seen += len(entries)
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                facts = _facts(entry, name)
                if facts is None:
                    skipped += 1
                else:
                    files.append(facts)
        if len(files) > most or seen > MAX_ENTRIES:
            raise BadRequest(
                f"The folder holds more than {most} pictures or {MAX_ENTRIES} files; choose folders below it.",
                param="folder",
            )
    return Scan(tuple(sorted(files, key=lambda file: file.name)), skipped)


def _facts(entry: os.DirEntry[str], name: str) -> FileFacts | None:
    """Return what is known of a regular file whose name is text; None for all else."""
    try:
        name.encode()
        found = entry.stat(follow_symlinks=False)
    except (OSError, UnicodeError):
        return None
    return FileFacts(name, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


@contextmanager
def opened(folder: Path, name: str) -> Iterator[Path]:
    """Open a picture below a folder, and give the path by which this process reads what it has opened.

    Raises ``PhotoError`` if it is not there any more, or is not within the folder.
    """
    parts = name.split("/")
    if not parts or len(parts) > _MAX_DEPTH or any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise PhotoError("its name leads out of the dataset's folder")
    fd = _descend(folder, parts)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PhotoError("it is no file any more")
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _descend(folder: Path, parts: list[str]) -> int:
    """Return what is opened by going from folder to folder."""
    try:
        fd = os.open(folder, _FOLDER)
    except OSError as error:
        raise PhotoError(f"the dataset's folder cannot be read: {error.strerror or error}") from None
    for number, part in enumerate(parts, 1):
        try:
            inner = _within(fd, part, _FILE if number == len(parts) else _FOLDER)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _within(folder: int, name: str, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise PhotoError("it is not there any more; look for new files") from None
    except OSError as error:
        if stat.S_ISLNK(_mode(name, folder)):
            raise PhotoError("it leads out of the dataset's folder by a symbolic link") from None
        raise PhotoError(f"it cannot be read: {error.strerror or error}") from None


def _mode(name: str, folder: int) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except OSError:
        return 0
