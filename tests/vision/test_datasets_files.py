"""The folder of a dataset: what is found in it, and that nothing outside of it is ever read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rolecall.errors import BadRequest
from rolecall.vision.datasets_files import checked_folder, opened, scan
from rolecall.vision.photos import PhotoError


def filled(folder: Path, *names: str) -> Path:
    """Return a folder with files of these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def read(folder: Path, name: str) -> bytes:
    with opened(folder, name) as path:
        return path.read_bytes()


def test_pictures_are_found_in_all_folders_below(tmp_path: Path) -> None:
    """By the ends of their names, in any case, in the order of their names; hidden ones and others are left out."""
    filled(tmp_path, "b.JPG", "a/x.webp", "a/b/y.tiff", ".hidden.jpg", ".cache/z.jpg", "notes.txt", "drawing.svg")
    found = scan(tmp_path)
    assert [file.name for file in found.files] == ["a/b/y.tiff", "a/x.webp", "b.JPG"]
    assert found.files[2].size == 5
    assert found.files[2].modified_ns == (tmp_path / "b.JPG").stat().st_mtime_ns
    assert found.skipped == 0


def test_links_are_left_out(tmp_path: Path) -> None:
    """A link to a picture or a folder is not followed, wherever it leads; nor is what is no file."""
    folder = filled(tmp_path / "photos", "in.jpg")
    outside = filled(tmp_path / "private", "secret.jpg")
    (folder / "out.jpg").symlink_to(outside / "secret.jpg")
    (folder / "again.jpg").symlink_to(folder / "in.jpg")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    found = scan(folder)
    assert [file.name for file in found.files] == ["in.jpg"]
    assert found.skipped == 3


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    """A file of which the name is not UTF-8 cannot be named in JSON."""
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"x")
    found = scan(tmp_path)
    assert (found.files, found.skipped) == ((), 1)


def test_too_many_pictures_are_refused(tmp_path: Path) -> None:
    """A folder that holds more than a dataset may is none."""
    filled(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert len(scan(tmp_path, most=3).files) == 3
    with pytest.raises(BadRequest, match="more than 2 pictures"):
        scan(tmp_path, most=2)


@pytest.mark.parametrize(
    "text", ["", "photos", "./photos", "/no/such/folder", "/etc/../etc", "/etc/passwd", "/a\0b", "~nobody-here/x"]
)
def test_what_is_no_folder_is_refused(text: str) -> None:
    """The message says that a whole path of the server's machine is needed."""
    with pytest.raises(BadRequest) as refusal:
        checked_folder(text)
    assert refusal.value.param == "folder"


def test_a_folder_is_known_by_its_real_path(tmp_path: Path) -> None:
    """A link to a folder stands for it when it is registered."""
    real = filled(tmp_path / "real", "a.jpg")
    (tmp_path / "link").symlink_to(real)
    assert checked_folder(str(tmp_path / "link")) == real


def test_a_picture_is_read_by_what_was_opened(tmp_path: Path) -> None:
    """The path that is given leads to the file even if its name leads elsewhere meanwhile."""
    folder = filled(tmp_path, "a/b/c.jpg")
    with opened(folder, "a/b/c.jpg") as path:
        (folder / "a/b/c.jpg").unlink()
        (folder / "a/b/c.jpg").symlink_to("/etc/passwd")
        assert path.read_bytes() == b"a/b/c.jpg"


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "a//b.jpg", "", ".", "a/\0", "x/" * 70]
)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    """Nothing is opened for it."""
    filled(tmp_path, "secret.jpg", "photos/a/b.jpg")
    with pytest.raises(PhotoError, match="leads out"):
        read(tmp_path / "photos", name)


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    """A file or folder that became a link after the scan is not followed, on the way or at its end."""
    folder = filled(tmp_path / "photos", "a/one.jpg", "two.jpg")
    secret = filled(tmp_path / "private", "one.jpg")
    assert read(folder, "a/one.jpg") == b"a/one.jpg"
    (folder / "a/one.jpg").unlink()
    (folder / "a").rmdir()
    (folder / "a").symlink_to(secret)
    (folder / "two.jpg").unlink()
    (folder / "two.jpg").symlink_to(secret / "one.jpg")
    for name in ("a/one.jpg", "two.jpg"):
        with pytest.raises(PhotoError, match="symbolic link"):
            read(folder, name)


def test_a_picture_that_is_gone(tmp_path: Path) -> None:
    """It is said in words; what is no file is not waited for."""
    with pytest.raises(PhotoError, match="not there any more"):
        read(tmp_path, "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoError, match="no file"):
        read(tmp_path, "pipe.jpg")


def test_nothing_stays_open(tmp_path: Path) -> None:
    """Neither after a success nor after a failure."""
    folder = filled(tmp_path, "a/b.jpg")
    before = len(list(Path("/proc/self/fd").iterdir()))
    read(folder, "a/b.jpg")
    for name in ("a/c.jpg", "c/b.jpg", "a", "../a"):
        with pytest.raises(PhotoError):
            read(folder, name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
