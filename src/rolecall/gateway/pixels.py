"""What Pillow does with one image: its size, a smaller image.

Imported with the first image that is looked at, in a thread: Pillow takes memory that a server of text never needs.
"""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image, ImageOps

from rolecall.core.image_types import scaled_size
from rolecall.core.long_text import LongText
from rolecall.gateway.image_text import Unreadable, as_base64, decoded

MAX_DECODED_PIXELS = 100_000_000
"""400 MB while an image is decoded. Pillow itself refuses to open what has more than 179 million."""
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""What engines read, and none of the formats that start other programs."""
_LOSSLESS = frozenset({"PNG", "GIF", "BMP"})
_HEADER_CHARACTERS = 64 * 1024
"""Of base64. Sizes stand at the beginning, in most files; WebP and AVIF are read whole."""
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for data that is no image, cut off, or forged."""

Size = tuple[int, int]
"""Width and height in pixels, as stored: without regard to EXIF's orientation."""


def image_size(text: str | LongText) -> Size | None:
    """Return the size of an image in a data URI or in base64, without decoding it; None if it cannot be told."""
    try:
        return _size(text)
    except Image.DecompressionBombError:
        return None


def _size(text: str | LongText) -> Size | None:
    """Return what ``image_size`` does; raises ``DecompressionBombError`` where it is more than Pillow goes into."""
    for characters in (_HEADER_CHARACTERS, None):
        try:
            data = decoded(text, characters)
            if not _begins_as_image(data):
                break
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return image.size
        except Image.DecompressionBombError:
            raise
        except _UNREADABLE:
            if len(text) <= _HEADER_CHARACTERS:
                break
    return None


def _begins_as_image(data: bytes) -> bool:
    """Whether any of the formats that are read begins so: of what is none, megabytes need not be decoded to say so."""
    Image.init()
    tests = (Image.OPEN[name][1] for name in _FORMATS if name in Image.OPEN)
    return any(test is None or test(data[:16]) for test in tests)


def shrunk(text: str | LongText, max_pixels: int, quality: int) -> tuple[str, str] | None:
    """Return what ``Pictures.shrunk`` does."""
    try:
        size = _size(text)
        if size is None or size[0] * size[1] <= max_pixels:
            return None
        with Image.open(io.BytesIO(decoded(text)), formats=_FORMATS) as image:
            return _encoded(_scaled(image, max_pixels), image.format in _LOSSLESS, quality)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable("has more pixels than can be read") from None
    except _UNREADABLE:
        raise Unreadable("cannot be decoded, it is cut off or damaged") from None


def _scaled(image: Image.Image, max_pixels: int) -> Image.Image:
    """Return the first frame, upright, with at most ``max_pixels``."""
    image.draft(None, scaled_size(*image.size, max_pixels))  # a JPEG can be decoded at a half, a quarter or an eighth
    if image.width * image.height > MAX_DECODED_PIXELS:
        raise Unreadable(f"has {image.width} × {image.height} pixels, more than the {MAX_DECODED_PIXELS} to be decoded")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return _plain(image).resize(scaled_size(*image.size, max_pixels), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _plain(image: Image.Image) -> Image.Image:
    """Return the image in a mode that JPEG or PNG can hold and that can be scaled smoothly."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would cut off what is above 255
        return image.convert("I").point([value // 256 for value in range(65536)], "L")
    return image if image.mode == "L" else image.convert("RGB")


def _encoded(image: Image.Image, lossless: bool, quality: int) -> tuple[str, str]:  # noqa: FBT001 - of one caller
    out = io.BytesIO()
    if lossless or image.mode == "RGBA":
        image.save(out, "PNG")
        return "image/png", as_base64(out.getvalue())
    image.save(out, "JPEG", quality=quality)
    return "image/jpeg", as_base64(out.getvalue())
