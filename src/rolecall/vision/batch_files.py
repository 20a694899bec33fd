"""Which pictures are meant by the words of a command line: files, folders with all that is below them, patterns."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HEIC_SUFFIXES = frozenset({".heic", ".heif"})


class NoPictures(Exception):
    """Nothing to do: a path that is not there, or no picture where some were looked for. The message says what was."""


@dataclass(slots=True)
class Found:
    """The pictures, each once, in the order of their names.

    ``others`` counts what else but sidecars lay there, by suffix; ``unreadable`` names folders and why.
    """

    pictures: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    @property
    def passed_over(self) -> str:
        """The other files in words, the most frequent suffixes first; empty if there were none."""
        return ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in self.others.most_common(5))


def find_pictures(words: Sequence[str], suffixes: Collection[str]) -> Found:
    """Return the pictures that files, folders and patterns (``*``, ``?``, ``[ab]``, ``**``) mean.

    In folders and by patterns files with one of ``suffixes`` are found, in whatever case, and nothing whose name begins
    with a dot; a file that is named is taken whatever its name is. Raises ``NoPictures``.
    """
    found = Found()
    paths = (path for word in words for path in _meant(word, suffixes, found))
    once = dict.fromkeys(os.path.abspath(path) for path in paths)  # noqa: PTH100 - a link keeps its own name
    found.pictures = [Path(path) for path in once]
    if not found.pictures:
        raise NoPictures(_nothing(words, suffixes, found))
    return found


def _meant(word: str, suffixes: Collection[str], found: Found) -> Iterator[Path]:
    path = Path(word).expanduser()
    if path.is_dir():
        yield from _below(path, suffixes, found)
    elif path.exists() or path.is_symlink():
        yield path
    elif glob.has_magic(word):
        yield from _matching(str(path), suffixes, found)
    else:
        raise NoPictures(f"{word}: there is no such file or folder")


def _matching(pattern: str, suffixes: Collection[str], found: Found) -> Iterator[Path]:
    matches = sorted(map(Path, glob.iglob(pattern, recursive=True)), key=_by_name)  # noqa: PTH207 - it may be absolute
    if not matches:
        raise NoPictures(f"{pattern}: nothing matches this pattern")
    for path in matches:
        if path.is_dir():
            if not pattern.endswith("**"):  # which has matched all that is below it
                yield from _below(path, suffixes, found)
        elif _is_picture(path, suffixes, found):
            yield path


def _below(folder: Path, suffixes: Collection[str], found: Found) -> Iterator[Path]:
    def note(error: OSError) -> None:
        found.unreadable.append(f"{error.filename}: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural)
        for name in sorted(names, key=natural):
            path = Path(parent, name)
            if not name.startswith(".") and _is_picture(path, suffixes, found):
                yield path


def _is_picture(path: Path, suffixes: Collection[str], found: Found) -> bool:
    suffix = path.suffix.lower()
    if suffix in suffixes:
        return True
    if suffix != ".xmp":
        found.others[suffix] += 1
    return False


def _by_name(path: Path) -> list[tuple[object, ...]]:
    return [part for name in path.parts for part in natural(name)]


def natural(name: str) -> list[tuple[object, ...]]:
    """Return a key that sorts IMG_2 before IMG_10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.casefold())]


def _nothing(words: Sequence[str], suffixes: Collection[str], found: Found) -> str:
    looked = ", ".join(sorted(suffix.lstrip(".") for suffix in suffixes))
    there = f"; there are other files: {found.passed_over}" if found.others else ""
    unread = "".join(f"; {each}" for each in found.unreadable)
    return f"no picture in {' '.join(words)}: looked for files that end in {looked}{there}{unread}"


def path_text(path: Path) -> str:
    r"""Return a path as text that any file can hold: bytes that are no UTF-8 are written as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
