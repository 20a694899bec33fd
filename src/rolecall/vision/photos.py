"""One picture as a model gets it: upright, its first frame, no larger than asked for, without metadata.

What is too large is refused before it is decoded, and what cannot be read is refused with the reason in words. All of
it takes tens of milliseconds of one processor: it belongs into a thread, once for each picture.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, ImageCms, UnidentifiedImageError

from rolecall.core.image_types import HEAD_BYTES, image_type
from rolecall.gateway.image_text import as_base64

MAX_BYTES = 512 * 2**20
"""A TIFF of 80 megapixels with 16 bits a channel."""
MAX_PIXELS = 100_000_000
"""What is decoded at the most: 400 MB while it is. A JPEG may have more: it is decoded at a fraction of its size."""
MAX_JPEG_PIXELS = 178_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF", "BMP")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".gif", ".avif", ".bmp", ".heic", ".heif"}
)
"""File names that are pictures; whether they are is found out when they are read."""
RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"})

_UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, struct.error, zlib.error)
"""What Pillow raises for data that is no image, cut off, or forged."""
_ORIENTATION = 0x0112
_SUBFILE, _DNG = 254, 50706
"""TIFF's tags: a picture that stands for a larger one; the version of a DNG."""
_BACKGROUND = (255, 255, 255)

# Of metadata that is damaged, and of large pictures, whose sizes are checked here. Filters of a while know no threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class PhotoError(Exception):
    """The picture cannot be used; the message says why, without its name."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture, prepared: ``data_url`` is what the model gets, ``width`` × ``height`` its size in pixels.

    ``sha256`` and ``source_bytes`` are those of the file that it was made of, ``source_size`` what that shows upright.
    """

    data_url: str
    width: int
    height: int
    sha256: str
    source_bytes: int
    source_size: tuple[int, int]
    source_type: str


def prepare(
    source: Path | bytes,
    *,
    max_side: int = 1024,
    jpeg_quality: int = 90,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Photo:
    """Return a picture whose longer side has at most ``max_side`` pixels, as a JPEG; raises ``PhotoError``.

    ``max_bytes`` bounds the file, ``max_pixels`` what is decoded. Transparency becomes white.
    """
    with _opened(source) as file:
        sha256, size = _digest(file, max_bytes)
        name = source.name if isinstance(source, Path) else ""
        kind = _kind(file, size, name)
        with _words_for_failures(), _image(file, kind) as image:
            _check_size(image, MAX_JPEG_PIXELS if kind == "image/jpeg" else max_pixels)
            upright = _upright_size(image)
            small = _small(image, max_side, max_pixels)
            data = io.BytesIO()
            small.save(data, "JPEG", quality=jpeg_quality)
    url = f"data:image/jpeg;base64,{as_base64(data.getvalue())}"
    return Photo(url, small.width, small.height, sha256, size, upright, kind)


def sha256_of(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Return the SHA-256 of a picture's file in hexadecimal digits, as a ``Photo`` has it; raises ``PhotoError``."""
    with _opened(path) as file:
        return _digest(file, max_bytes)[0]


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        if source.exists() and not source.is_file():  # a pipe would be waited for
            raise PhotoError("it is a folder" if source.is_dir() else "it is no ordinary file")
        file = source.open("rb")
    except OSError as error:
        raise PhotoError(f"it cannot be read: {error.strerror or error}") from None
    with file:
        yield file


def _digest(file: BinaryIO, max_bytes: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        while block := file.read(2**20):
            size += len(block)
            if size > max_bytes:
                raise PhotoError(f"it has more than {max_bytes // 2**20 or 1} MB")
            digest.update(block)
        file.seek(0)
    except OSError as error:
        raise PhotoError(f"it cannot be read: {error.strerror or error}") from None
    return digest.hexdigest(), size


def _kind(file: BinaryIO, size: int, name: str) -> str:
    """Return the media type; raises ``PhotoError`` for what is none that can be read."""
    head = file.read(1024)
    file.seek(0)
    suffix = Path(name).suffix.lower()
    if not size:
        raise PhotoError("it is empty (0 bytes)")
    if suffix in RAW_SUFFIXES:
        raise PhotoError(f"it is a raw file ({suffix}): export it as a JPEG or TIFF")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in start):
        raise PhotoError("it is an SVG drawing, not a picture of pixels: export it as a PNG")
    kind = image_type(head[:HEAD_BYTES])
    if kind is None or kind == "image/jp2":
        what = "a JPEG 2000" if kind else "a PDF" if start.startswith(b"%pdf") else "not an image"
        raise PhotoError(f"it is {what}, or of no kind that is read here (JPEG, PNG, WebP, TIFF, GIF, AVIF, HEIC)")
    return kind


@contextmanager
def _words_for_failures() -> Iterator[None]:
    try:
        yield
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise PhotoError(f"it has more than {MAX_JPEG_PIXELS // 1_000_000} megapixels") from None
    except UnidentifiedImageError:
        raise PhotoError("it begins like an image and is none: cut off or damaged") from None
    except MemoryError:
        raise PhotoError("there is not enough memory to decode it") from None
    except _UNREADABLE:
        raise PhotoError("it cannot be decoded: cut off or damaged") from None


def _image(file: BinaryIO, kind: str) -> Image.Image:
    if kind == "image/heic":
        return _heic(file)
    image = Image.open(file, formats=FORMATS)
    if image.format == "TIFF" and _is_preview(image):
        raise PhotoError("it is a raw file, of which only a small preview could be read: export it as a JPEG or TIFF")
    return image


def _heic(file: BinaryIO) -> Image.Image:
    try:
        heif: Any = importlib.import_module("pillow_heif.as_plugin")
    except ImportError:
        raise PhotoError("it is a HEIC picture, which needs a library more: pip install 'rolecall[heic]'") from None
    return cast("Image.Image", heif.HeifImageFile(file))


def _is_preview(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    return _DNG in tags or bool(tags.get(_SUBFILE, 0) & 1)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise PhotoError(
            f"it has {image.width} × {image.height} pixels, {pixels / 1e6:.0f} megapixels; "
            f"{max_pixels / 1e6:g} are the most that is read"
        )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    is_turned = _orientation(image) in {5, 6, 7, 8}
    return (image.height, image.width) if is_turned else image.size


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation; 1 if there is none, and of a TIFF, which Pillow itself turns."""
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(_ORIENTATION)
    except _UNREADABLE:  # metadata that is damaged does not make the picture unusable
        return 1
    return value if isinstance(value, int) else 1


def _small(image: Image.Image, max_side: int, max_pixels: int) -> Image.Image:
    """Return the first frame in RGB, upright and scaled."""
    orientation = _orientation(image)
    image.draft("RGB", _fitting(image.size, max_side))  # a JPEG can be decoded at a half, a quarter or an eighth
    _check_size(image, max_pixels)
    image.load()
    profile = image.info.get("icc_profile")
    plain = _plain(image)
    size = _fitting(plain.size, max_side)
    if size != plain.size:
        plain = plain.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    plain = _in_srgb(plain, profile)
    if plain.mode == "RGBA":
        flat = Image.new("RGB", plain.size, _BACKGROUND)
        flat.paste(plain, mask=plain.getchannel("A"))
        plain = flat
    plain.info.clear()  # what it says of itself, its profile and comments too
    method = _TURNS.get(orientation)
    return plain if method is None else plain.transpose(method)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What EXIF's orientation asks for."""


def _fitting(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    longer = max(size)
    if longer <= max_side:
        return size
    return max(1, round(size[0] * max_side / longer)), max(1, round(size[1] * max_side / longer))


def _plain(image: Image.Image) -> Image.Image:
    """Return the image in a mode that can be scaled smoothly."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode.startswith("I"):  # 16 bits of grey: Pillow would cut off what is above 255
        return image.convert("I").point([value // 256 for value in range(65536)], "L")
    if image.mode == "F":
        raise PhotoError("its pixels are floating-point numbers, as of HDR: export it with 8 or 16 bits")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    return image if image.mode in {"L", "RGB", "CMYK"} else image.convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image with the colours that its profile means; models have learnt sRGB, and take all for it."""
    if not profile or image.mode == "L":
        return image.convert("RGB") if image.mode == "CMYK" else image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        base = image if image.mode == "CMYK" else image.convert("RGB")
        converted = ImageCms.profileToProfile(base, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a profile that is none, or of another mode
        return image.convert("RGB") if image.mode == "CMYK" else image
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
