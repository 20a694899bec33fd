"""What kind of image some bytes are, told from their beginning, and what size one is scaled down to."""

from __future__ import annotations

import math
import re

HEAD_BYTES = 32
"""As many bytes from the beginning are enough."""

_TYPES = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF.{4}WEBP",
    "image/bmp": rb"BM.{4}\x00{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00{3}",
    "image/tiff": rb"II\x2a\x00|MM\x00\x2a",
    "image/avif": rb".{4}ftyp(?:avif|avis)",
    "image/heic": rb".{4}ftyp(?:hei[cmsx]|hev[cx]|mif1|msf1)",
    "image/jp2": rb"\x00{3}\x0cjP  \r\n\x87\n",
}
_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _TYPES.items()}


def image_type(head: bytes) -> str | None:
    """Return the media type of an image that begins like this; None if it is none that is known."""
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(head)), None)


def scaled_size(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """Return the size that an image is scaled down to, its proportions kept; its own if it has few enough pixels."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    across, down = int(width * scale), int(height * scale)
    if across and down:
        return across, down
    return min(width, max_pixels) if across else 1, min(height, max_pixels) if down else 1
