"""Files are read once for each state that they are in."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rolecall.runtime.file_memory import MOST_REMEMBERED, FileMemory


class Reader:
    """Reads files, and counts how often."""

    def __init__(self, *files: Path) -> None:
        self.times = 0
        self._files = files
        self._memory = FileMemory[str]()

    def __call__(self, *others: str, files: tuple[Path, ...] = ()) -> str:
        """Return what they hold, as it is remembered."""
        self._read_files = files or self._files
        return self._memory.recall(self._read_files, self._read, *others)

    def _read(self) -> str:
        self.times += 1
        return "".join(file.read_text() for file in self._read_files)


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    """Its size and its time tell; what else is gone by is remembered beside it."""
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("a")
    second.write_text("b")
    read = Reader(first, second)
    assert [read(), read(), read("x"), read("x")] == ["ab"] * 4
    assert read.times == 2
    second.write_text("longer")
    assert read() == "alonger"
    os.utime(first, (1, 1))
    assert (read(), read.times) == ("alonger", 4)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """Is the asker's to deal with, and is found when it comes."""
    read = Reader(tmp_path / "late")
    with pytest.raises(FileNotFoundError):
        read()
    (tmp_path / "late").write_text("here")
    assert read() == "here"


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    """So that what is remembered does not grow for ever."""
    file = tmp_path / "1"
    file.write_text("a")
    read = Reader(file)
    for number in range(MOST_REMEMBERED + 1):
        read(str(number))
    before = read.times
    read(str(MOST_REMEMBERED))
    assert read.times == before
    read("0")
    assert read.times == before + 1


def test_threads_that_ask_at_once(tmp_path: Path) -> None:
    """One of them reads, all of them get it."""
    file = tmp_path / "1"
    file.write_text("a")
    read = Reader(file)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: read(), range(64))) == ["a"] * 64
    assert read.times == 1
