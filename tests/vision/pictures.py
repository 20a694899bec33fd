"""Photographs that nobody took: made for tests, with EXIF, each with bytes of its own."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ORIENTATION, MODEL, TAKEN = 0x0112, 0x0110, 0x0132


def photograph(path: Path, number: int = 0, *, size: tuple[int, int] = (160, 120)) -> Path:
    """Write a picture in the format of its suffix; of every third one EXIF says that it lies on its side."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.paste((number * 7 % 256, number * 31 % 256, number * 77 % 256), (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[MODEL] = "rolecall test camera"
    exif[TAKEN] = f"2026:05:{number % 28 + 1:02} 10:{number // 60 % 60:02}:{number % 60:02}"
    exif[ORIENTATION] = 6 if number % 3 == 2 else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    return path


def folder(path: Path, count: int, *, size: tuple[int, int] = (160, 120)) -> Path:
    """Fill a folder with so many JPEGs."""
    for number in range(count):
        photograph(path / f"IMG_{number:04}.jpg", number, size=size)
    return path
