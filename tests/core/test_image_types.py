"""What kind of image some bytes are, and what size one is scaled down to."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rolecall.core.image_types import HEAD_BYTES, image_type, scaled_size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_images_are_known_by_their_beginning(kind: str) -> None:
    """As Pillow writes them."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(out, kind)
    assert image_type(out.getvalue()[:HEAD_BYTES]) == {"JPEG2000": "image/jp2"}.get(kind, f"image/{kind.lower()}")


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_pictures_of_phones_are_known(brand: bytes) -> None:
    """HEIC, which not every engine reads, is an image."""
    assert image_type(b"\0\0\0\x18ftyp" + brand) == "image/heic"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG",
        b"GIF89",
        b"BM, the beginning of a letter that is no bitmap",
        b"RIFF1234WAVE",
        b"\0\0\0\x18ftypmp42",
        b" \xff\xd8\xff",
        b"%PDF-1.7",
    ],
)
def test_other_things_are_no_images(data: bytes) -> None:
    """Pages, sounds, films, documents and what is too short."""
    assert image_type(data) is None


@pytest.mark.parametrize(
    ("size", "max_pixels", "scaled"),
    [
        ((4000, 3000), None, (4000, 3000)),
        ((4000, 3000), 12_000_000, (4000, 3000)),
        ((4000, 3000), 3_000_000, (2000, 1500)),
        ((10_000, 1), 100, (100, 1)),
        ((1, 10_000), 100, (1, 100)),
        ((3, 3), 1, (1, 1)),
    ],
)
def test_sizes_are_scaled(size: tuple[int, int], max_pixels: int | None, scaled: tuple[int, int]) -> None:
    """Both sides by the same factor, and not at all what has few enough pixels."""
    assert scaled_size(*size, max_pixels) == scaled


@given(width=st.integers(1, 60_000), height=st.integers(1, 60_000), max_pixels=st.integers(1, 10**9))
def test_a_scaled_size_keeps_the_limit(width: int, height: int, max_pixels: int) -> None:
    """It has at least one pixel and at most as many as allowed, and is never larger than the image."""
    across, down = scaled_size(width, height, max_pixels)
    assert 1 <= across <= width
    assert 1 <= down <= height
    assert across * down <= max_pixels
