"""Photographs for tests: drawn by a seed, with the EXIF of a camera, in each format that is read."""

from __future__ import annotations

import colorsys
import io
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from PIL import Image, ImageDraw

ORIENTATION, MAKE, MODEL, DATE, EXIF_IFD, TAKEN, ISO, GPS_IFD = (
    0x0112,
    0x010F,
    0x0110,
    0x0132,
    0x8769,
    0x9003,
    0x8827,
    0x8825,
)
MORNING = datetime(2026, 5, 1, 6, 30, 0)  # noqa: DTZ001 - EXIF knows no time zone
SIZE = (96, 64)
"""Small, so that hundreds are made and read in a second."""

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How the pixels of an upright picture lie in a file of each orientation."""


def scene(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return a picture of sky, ground and some things; another one for each seed."""
    chance = random.Random(seed)
    width, height = size
    image = Image.new("RGB", size, _colour(chance.uniform(0.5, 0.7), 0.5, chance.uniform(0.2, 1)))
    draw = ImageDraw.Draw(image)
    horizon = height * chance.uniform(0.4, 0.7)
    draw.rectangle((0, horizon, width, height), fill=_colour(chance.uniform(0.05, 0.35), 0.6, chance.uniform(0.2, 0.8)))
    for _ in range(chance.randrange(7)):
        x, y, r = chance.uniform(0, width), chance.uniform(0, height), chance.uniform(0.03, 0.15) * width
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_colour(chance.random(), chance.random(), chance.random()))
    return image


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def exif(seed: int = 0, orientation: int = 1) -> Image.Exif:
    """Return what a camera writes: make, model, date, sensitivity, place, and how it was held."""
    found = Image.Exif()
    taken = (MORNING + timedelta(minutes=7 * seed)).strftime("%Y:%m:%d %H:%M:%S")
    found[ORIENTATION], found[MAKE], found[MODEL], found[DATE] = orientation, "Rolecall", f"Test {seed % 3}", taken
    found.get_ifd(EXIF_IFD).update({TAKEN: taken, ISO: 100 * 2 ** (seed % 6)})
    found.get_ifd(GPS_IFD).update({1: "N", 2: (47.0, 22.0, float(seed % 60)), 3: "E", 4: (8.0, 33.0, 0.0)})
    return found


def encoded(image: Image.Image, format_: str = "JPEG", **options: object) -> bytes:
    """Return the bytes of a file."""
    out = io.BytesIO()
    image.save(out, format_, **options)
    return out.getvalue()


def photograph(seed: int = 0, *, size: tuple[int, int] = SIZE, orientation: int = 1, format_: str = "JPEG") -> bytes:
    """Return a photograph as a file; ``size`` is that of the upright picture."""
    image = scene(seed, size)
    turn = TURNS[orientation]
    return encoded(image if turn is None else image.transpose(turn), format_, exif=exif(seed, orientation))


def write_photographs(folder: Path, count: int, *, size: tuple[int, int] = SIZE) -> list[Path]:
    """Write ``count`` different JPEGs ``IMG_0001.jpg`` …, held in all four ways; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return list(_written(folder, count, size))


def _written(folder: Path, count: int, size: tuple[int, int]) -> Iterator[Path]:
    for number in range(1, count + 1):
        path = folder / f"IMG_{number:04}.jpg"
        path.write_bytes(photograph(number, size=size, orientation=(1, 1, 6, 8, 3)[number % 5]))
        yield path
