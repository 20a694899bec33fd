"""Sizes of images, and smaller images: in threads, few at once, never more pixels than memory allows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread

from rolecall.core.conversation import image_positions, parts
from rolecall.core.image_types import scaled_size
from rolecall.core.long_text import TEXTS, LongText
from rolecall.core.media import find_media, images, value_at

MAX_AT_ONCE = 2
"""Images that are decoded at the same time."""

Size = tuple[int, int]
"""Width and height in pixels, as stored: without regard to EXIF's orientation."""


class Pictures:
    """Reads and scales images off the event loop."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(MAX_AT_ONCE)
        # What is odd about somebody's file is no news for the terminal; what matters raises an error.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def sizes(self) -> ImageSizes:
        """Return what looks sizes up for one request, each image once."""
        return ImageSizes(self._limiter)

    async def shrunk(self, text: str | LongText, max_pixels: int, quality: int) -> tuple[str, str] | None:
        """Return media type and base64 of a smaller image; None if it has few enough pixels, or is none we can read.

        ``text`` is a data URI or base64. Raises ``Unreadable`` for one that is too large and cannot be decoded.
        """
        return await anyio.to_thread.run_sync(_shrunk, text, max_pixels, quality, limiter=self._limiter)


class ImageSizes:
    """The sizes of a request's images, each looked up once."""

    def __init__(self, limiter: anyio.CapacityLimiter) -> None:
        self._limiter = limiter
        # The text is kept, so that its identity stays its own.
        self._known: dict[int, tuple[str | LongText, Size | None]] = {}

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

    def _size(self, text: str | LongText | None, max_pixels: int | None) -> Size | None:
        _, size = self._known.get(id(text), (None, None))
        return None if size is None else scaled_size(*size, max_pixels)


def _text_of(part: Mapping[str, Any]) -> str | LongText | None:
    """Return the data URI or base64 of a part's first image; None if it holds none, or its address."""
    image = next((image for image in images(find_media(part)) if not image.is_address), None)
    text = None if image is None else value_at(part, image.path)
    return text if isinstance(text, TEXTS) else None


def _sizes(texts: Iterable[str | LongText]) -> list[Size | None]:
    from rolecall.gateway.pixels import image_size  # noqa: PLC0415 - Pillow is for servers that see images

    return [image_size(text) for text in texts]


def _shrunk(text: str | LongText, max_pixels: int, quality: int) -> tuple[str, str] | None:
    from rolecall.gateway.pixels import shrunk  # noqa: PLC0415 - as above

    return shrunk(text, max_pixels, quality)
