"""Folders, each once, whatever symbolic links make of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rolecall.discovery.found import Yield, is_utf8, why

MOST_FOLDERS = 200_000
_NOT_DISKS = frozenset(map(Path, ("/proc", "/sys", "/dev")))


@dataclass
class Folder:
    """What a folder holds. ``files`` are those that are there: for a link that leads nowhere there is only a name."""

    path: Path
    files: dict[str, os.stat_result] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def named(self, suffix: str) -> list[str]:
        """Return the files whose names end so, in any case."""
        return [name for name in self.files if name.lower().endswith(suffix)]


class Walk:
    """Goes through folders; remembers where it was, so that a loop of links ends and nothing is seen twice."""

    def __init__(self, out: Yield) -> None:
        self._out = out
        self._been: set[tuple[int, int]] = set()
        self._read: set[tuple[int, int]] = set()

    def is_new_file(self, status: os.stat_result) -> bool:
        """Whether a file was not handed out before, under this name or another; from now on it was."""
        key = status.st_dev, status.st_ino
        is_new = key not in self._read
        self._read.add(key)
        return is_new

    def open(self, path: Path) -> Folder | None:
        """Return what a folder holds, by name, links last; None for one that was opened before or cannot be."""
        try:
            status = path.stat()
            key = status.st_dev, status.st_ino
            if key in self._been or not stat.S_ISDIR(status.st_mode):
                return None
            self._been.add(key)
            if len(self._been) > MOST_FOLDERS or path in _NOT_DISKS:
                return None
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            self._out.skip(path, f"this folder cannot be read: {why(error)}")
            return None
        return self._sorted(path, found)

    def _sorted(self, path: Path, entries: list[os.DirEntry[str]]) -> Folder:
        folder = Folder(path)
        for entry in entries:
            if not is_utf8(entry.name):
                self._out.skip(path / entry.name, "its name is not UTF-8, which a registry cannot hold: rename it")
                continue
            try:
                status = entry.stat()
            except OSError:
                folder.broken.append(entry.name)
                continue
            if stat.S_ISDIR(status.st_mode):
                folder.folders.append(entry.name)
            else:
                folder.files[entry.name] = status
        return folder

    def below(self, root: Path) -> Iterator[Folder]:
        """Yield a folder and all below it; whoever takes one may remove from its ``folders`` what is not to be entered.

        Hidden folders are not entered, unless they are the root.
        """
        todo = [root]
        while todo:
            folder = self.open(todo.pop())
            if folder is None:
                continue
            yield folder
            todo += [folder.path / name for name in reversed(folder.folders) if not name.startswith(".")]
