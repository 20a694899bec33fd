"""Sizes of images, and smaller images, with Pillow: in threads, few at once, never more pixels than memory allows."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
from PIL import Image, ImageOps

from rolecall.core.conversation import image_positions, parts
from rolecall.core.image_types import scaled_size
from rolecall.core.media import find_media, images, is_data_uri, value_at

MAX_DECODED_PIXELS = 100_000_000
"""400 MB while an image is decoded. Pillow itself refuses to open what has more than 179 million."""
MAX_AT_ONCE = 2
"""Images that are decoded at the same time."""

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""What engines read, and none of the formats that start other programs."""
_LOSSLESS = frozenset({"PNG", "GIF", "BMP"})
_HEADER_CHARACTERS = 64 * 1024
"""Of base64. Sizes stand at the beginning, in most files; WebP and AVIF are read whole."""
_PIECE = 128 * 1024
"""Groups of three bytes, or four characters, that are coded in one step: no thread but the one that does it runs."""
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


class Unreadable(ValueError):
    """An image that cannot be scaled down; the message says why and fits after "it"."""


class Pictures:
    """Reads and scales images off the event loop."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(MAX_AT_ONCE)
        # What is odd about somebody's file is no news for the terminal; what matters raises an error.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def sizes(self) -> ImageSizes:
        """Return what looks sizes up for one request, each image once."""
        return ImageSizes(self._limiter)

    async def shrunk(self, text: str, max_pixels: int, quality: int) -> tuple[str, str] | None:
        """Return media type and base64 of a smaller image; None if it has few enough pixels, or is none we can read.

        ``text`` is a data URI or base64. Raises ``Unreadable`` for one that is too large and cannot be decoded.
        """
        return await anyio.to_thread.run_sync(_shrunk, text, max_pixels, quality, limiter=self._limiter)


class ImageSizes:
    """The sizes of a request's images, each looked up once."""

    def __init__(self, limiter: anyio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._known: dict[int, tuple[str, Size | None]] = {}  # the string is kept, so that its identity stays its own

    async def of(self, messages: Sequence[Any], max_pixels: int | None = None) -> list[list[Size | None]]:
        """Return for each message the size of each part that ``image_positions`` tells of, as an engine gets it.

        With ``max_pixels`` that is what it is scaled down to. None stands for an image whose size cannot be told: an
        address, a part that holds none, what is no image.
        """
        texts = [[_text_of(parts(message)[at]) for at in image_positions(message)] for message in messages]
        new = [text for row in texts for text in row if text is not None and id(text) not in self._known]
        if new:
            found = await anyio.to_thread.run_sync(_sizes, new, limiter=self._limiter)
            self._known.update((id(text), (text, size)) for text, size in zip(new, found, strict=True))
        return [[self._size(text, max_pixels) for text in row] for row in texts]

    def forget(self) -> None:
        """Hold no image any more."""
        self._known.clear()

    def _size(self, text: str | None, max_pixels: int | None) -> Size | None:
        _, size = self._known.get(id(text), (None, None))
        return None if size is None else scaled_size(*size, max_pixels)


def image_size(text: str) -> Size | None:
    """Return the size of an image in a data URI or in base64, without decoding it; None if it cannot be told."""
    try:
        return _size(text)
    except Image.DecompressionBombError:
        return None


def _size(text: str) -> Size | None:
    """Return what ``image_size`` does; raises ``DecompressionBombError`` where it is more than Pillow goes into."""
    for characters in (_HEADER_CHARACTERS, None):
        try:
            with Image.open(io.BytesIO(_decoded(text, characters)), formats=_FORMATS) as image:
                return image.size
        except Image.DecompressionBombError:
            raise
        except _UNREADABLE:
            if len(text) <= _HEADER_CHARACTERS:
                break
    return None


def as_base64(data: bytes) -> str:
    """Return bytes as base64."""
    pieces = (data[start : start + 3 * _PIECE] for start in range(0, len(data), 3 * _PIECE))
    return "".join(base64.b64encode(piece).decode("ascii") for piece in pieces)


def _text_of(part: Mapping[str, Any]) -> str | None:
    """Return the data URI or base64 of a part's first image; None if it holds none, or its address."""
    image = next((image for image in images(find_media(part)) if not image.is_address), None)
    text = None if image is None else value_at(part, image.path)
    return text if isinstance(text, str) else None


def _sizes(texts: Iterable[str]) -> list[Size | None]:
    return [image_size(text) for text in texts]


def _decoded(text: str, characters: int | None = None) -> bytes:
    """Return the bytes of a data URI or of base64, or those of its first ``characters``; raises ``ValueError``."""
    start = 0
    if is_data_uri(text):
        start = text.find(",") + 1
        if ";base64" not in text[:start].lower():
            raise ValueError("no base64")
    coded = text[start:] if characters is None else text[start : start + characters]
    if "\n" in coded or " " in coded:
        coded = "".join(coded.split())
    *pieces, last = [coded[at : at + 4 * _PIECE] for at in range(0, len(coded) or 1, 4 * _PIECE)]
    return b"".join([*map(binascii.a2b_base64, pieces), _last_decoded(last)])


def _last_decoded(coded: str) -> bytes:
    try:
        return binascii.a2b_base64(coded + "==")  # superfluous padding is ignored
    except binascii.Error:
        return binascii.a2b_base64(coded[:-1] + "==")  # one character beyond a group of four holds no whole byte


def _shrunk(text: str, max_pixels: int, quality: int) -> tuple[str, str] | None:
    try:
        size = _size(text)
        if size is None or size[0] * size[1] <= max_pixels:
            return None
        with Image.open(io.BytesIO(_decoded(text)), formats=_FORMATS) as image:
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
