"""Thumbnails: upright, small, made once, and an error in words where there can be none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from rolecall.errors import InvalidImage
from rolecall.vision.datasets_records import FileFacts, Sample
from rolecall.vision.datasets_thumbnails import SIDES, Thumbnails, mark
from rolecall.vision.decoding import Decoding


def sample(folder: Path, name: str) -> Sample:
    """Return a sample as a scan would find it now."""
    found = (folder / name).lstat()
    return Sample(7, 3, FileFacts(name, found.st_size, found.st_mtime_ns))


def picture(path: Path, size: tuple[int, int], orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", size, "white")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    image.save(path, exif=exif)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return image


async def test_a_thumbnail_is_small_and_upright(tmp_path: Path) -> None:
    """The longer side has the size's pixels; EXIF's orientation is followed, and none is left to follow."""
    picture(tmp_path / "a.jpg", (1600, 800), orientation=6)
    thumbnails = Thumbnails(tmp_path / "kept", Decoding())
    small = opened(await thumbnails.get(tmp_path, sample(tmp_path, "a.jpg"), "small"))
    large = opened(await thumbnails.get(tmp_path, sample(tmp_path, "a.jpg"), "large"))
    assert (small.size, large.size) == ((160, 320), (640, SIDES["large"]))
    assert small.getexif() == {}
    pixel = small.convert("RGB").getpixel((80, 20))
    assert isinstance(pixel, tuple)
    assert pixel[1] < 60


async def test_a_thumbnail_is_made_once(tmp_path: Path) -> None:
    """It is there without the picture; a picture that has changed by the next scan gets a new one."""
    picture(tmp_path / "a.png", (100, 50))
    thumbnails = Thumbnails(tmp_path / "kept", Decoding())
    before = sample(tmp_path, "a.png")
    made = await thumbnails.get(tmp_path, before, "small")
    (tmp_path / "a.png").unlink()
    assert await Thumbnails(tmp_path / "kept", Decoding()).get(tmp_path, before, "small") == made
    picture(tmp_path / "a.png", (50, 100))
    after = sample(tmp_path, "a.png")
    assert mark(after) != mark(before)
    assert opened(await thumbnails.get(tmp_path, after, "small")).size == (50, 100)
    await thumbnails.forget(3)
    assert list((tmp_path / "kept").iterdir()) == []
    await thumbnails.forget(3)


async def test_a_full_disk_keeps_none_and_shows_all(tmp_path: Path) -> None:
    """Nor does a folder that cannot be written."""
    picture(tmp_path / "a.png", (100, 50))
    thumbnails = Thumbnails(tmp_path / "kept", Decoding(), free=lambda _: 0)
    assert opened(await thumbnails.get(tmp_path, sample(tmp_path, "a.png"), "small")).size == (100, 50)
    assert not list((tmp_path / "kept").rglob("*.jpg"))
    (tmp_path / "file").write_bytes(b"")
    found = await Thumbnails(tmp_path / "file", Decoding()).get(tmp_path, sample(tmp_path, "a.png"), "small")
    assert opened(found).size == (100, 50)


def huge(path: Path) -> None:
    """Write a PNG's head that says 20000 × 10000 pixels."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", 20000, 10000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0" * 100)


@pytest.mark.parametrize("kind", ["text", "cut", "empty", "huge", "svg", "link"])
async def test_what_is_no_picture(tmp_path: Path, kind: str) -> None:
    """Its name and the reason are said, with a 400."""
    path = tmp_path / "a.jpg"
    picture(path, (400, 300))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "huge":
        huge(path)
    elif kind == "link":
        path.unlink()
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes({"text": b"hello", "empty": b"", "svg": b"<svg><script>alert(1)</script></svg>"}[kind])
    with pytest.raises(InvalidImage, match=r"no preview of 'a\.jpg'"):
        await Thumbnails(tmp_path / "kept", Decoding()).get(tmp_path, sample(tmp_path, "a.jpg"), "small")


async def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    """An animated GIF is shown by its beginning."""
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = opened(await Thumbnails(tmp_path / "kept", Decoding()).get(tmp_path, sample(tmp_path, "a.gif"), "small"))
    pixel = found.convert("RGB").getpixel((30, 20))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200
    assert pixel[2] < 60
