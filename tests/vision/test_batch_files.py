"""Which pictures are meant by the words of a command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rolecall.vision.batch_files import NoPictures, find_pictures, path_text

SUFFIXES = {".jpg", ".png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with pictures, other files, and what is hidden."""
    names = ["b/IMG_10.JPG", "b/IMG_2.jpg", "a.png", "notes.txt", "raw.cr2", ".hidden.jpg", ".cache/x.jpg", "b/[1].jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder: Path, *words: str | Path) -> list[str]:
    """Return what is found, relative to the folder."""
    found = find_pictures([str(word) for word in words], SUFFIXES)
    return [str(path.relative_to(folder)) for path in found.pictures]


def test_a_folder_means_all_pictures_below_it(folder: Path) -> None:
    """Suffixes in any case, numbers by their value, nothing hidden; the other files are counted."""
    assert names(folder, folder) == ["a.png", "b/[1].jpg", "b/IMG_2.jpg", "b/IMG_10.JPG"]
    found = find_pictures([str(folder)], SUFFIXES)
    assert found.passed_over == "1 .txt, 1 .cr2"


def test_patterns_find_pictures_and_folders(folder: Path) -> None:
    """``**`` looks into all folders, a name with brackets that is there is a name, a matched folder counts whole."""
    assert names(folder, folder / "**/*.jpg") == ["b/[1].jpg", "b/IMG_2.jpg"]
    assert names(folder, folder / "b/[1].jpg") == ["b/[1].jpg"]
    assert names(folder, folder / "?") == ["b/[1].jpg", "b/IMG_2.jpg", "b/IMG_10.JPG"]
    assert names(folder, folder / "**") == ["a.png", "b/[1].jpg", "b/IMG_2.jpg", "b/IMG_10.JPG"]
    assert names(folder, folder / "*") == ["a.png", "b/[1].jpg", "b/IMG_2.jpg", "b/IMG_10.JPG"]


def test_each_picture_is_found_once(folder: Path) -> None:
    """A picture that is named, and lies in a folder that is named, is one; the order is that of the words."""
    assert names(folder, folder / "b/IMG_10.JPG", folder, folder / "b/../a.png") == [
        "b/IMG_10.JPG", "a.png", "b/[1].jpg", "b/IMG_2.jpg",
    ]  # fmt: skip


def test_a_file_that_is_named_is_taken(folder: Path) -> None:
    """Whatever its name is: its content decides later."""
    assert names(folder, folder / "notes.txt", folder / ".hidden.jpg") == ["notes.txt", ".hidden.jpg"]


def test_a_relative_word_and_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths come back absolute, so that a later run from elsewhere knows them again."""
    monkeypatch.chdir(folder / "b")
    monkeypatch.setenv("HOME", str(folder))
    assert names(folder, "IMG_2.jpg", "~/a.png") == ["b/IMG_2.jpg", "a.png"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere", "there is no such file or folder"),
        ("*.webp", "nothing matches this pattern"),
        ("*.txt", r"looked for files that end in jpg, png; there are other files: 1 \.txt"),
        ("empty", r"no picture in .*empty: looked for files that end in jpg, png$"),
    ],
)
def test_no_pictures_is_an_error_that_says_what_was_looked_for(folder: Path, word: str, message: str) -> None:
    """A path that is not there, a pattern without a match and a folder without pictures are told apart."""
    (folder / "empty").mkdir()
    with pytest.raises(NoPictures, match=message):
        find_pictures([str(folder / word)], SUFFIXES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_told(folder: Path) -> None:
    """The others are found all the same."""
    (folder / "b").chmod(0)
    found = find_pictures([str(folder)], SUFFIXES)
    (folder / "b").chmod(0o700)
    assert [path.name for path in found.pictures] == ["a.png"]
    assert found.unreadable == [f"{folder}/b: Permission denied"]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """A name that is no UTF-8 is found, and can be written down."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))
    path.touch()
    found = find_pictures([str(tmp_path)], SUFFIXES).pictures
    assert found == [path]
    assert path_text(path) == f"{tmp_path}/\\xff.jpg"
