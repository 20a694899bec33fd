"""Pictures as models get them: upright, small, without metadata; and what is refused, with the reason in words."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from photographs import TURNS, encoded, photograph, scene
from rolecall.vision.photos import RAW_SUFFIXES, SUFFIXES, Photo, PhotoError, prepare, sha256_of

RED, GREEN, BLUE, WHITE = (254, 0, 0), (0, 128, 0), (0, 0, 254), (255, 255, 255)


def pixels(photo: Photo) -> Image.Image:
    """The picture that a model gets."""
    head, _, data = photo.data_url.partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.size == (photo.width, photo.height)
    assert image.format == "JPEG"
    return image.convert("RGB")


def is_near(colour: object, wanted: tuple[int, ...], within: int = 12) -> bool:
    assert isinstance(colour, tuple)
    return all(abs(have - want) <= within for have, want in zip(colour, wanted, strict=True))


def corners(orientation: int = 1) -> Image.Image:
    """A picture of four colours, one in each corner, as it lies in a file of that orientation."""
    image = Image.new("RGB", (64, 32), WHITE)
    for colour, box in ((RED, (0, 0)), (GREEN, (32, 0)), (BLUE, (0, 16))):
        image.paste(colour, (*box, box[0] + 32, box[1] + 16))
    turn = TURNS[orientation]
    return image if turn is None else image.transpose(turn)


def refusal(source: Path | bytes, **limits: int) -> str:
    with pytest.raises(PhotoError) as caught:
        prepare(source, **limits)
    return str(caught.value)


# -- what is taken


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_stand_upright(orientation: int, format_: str) -> None:
    """However the camera was held, and whichever format has the EXIF, the model gets the picture upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if format_ in {"JPEG", "WEBP"} else {}
    photo = prepare(encoded(corners(orientation), format_, exif=exif, **options))
    image = pixels(photo)
    assert photo.source_size == image.size == (64, 32)
    for place, colour in (((8, 4), RED), ((56, 4), GREEN), ((8, 28), BLUE), ((56, 28), WHITE)):
        assert is_near(image.getpixel(place), colour, 40)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_a_strange_orientation_is_none(orientation: int) -> None:
    """EXIF that makes no sense does not make the picture unusable."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert prepare(encoded(corners(), exif=exif)).source_size == (64, 32)


def test_damaged_exif_is_none() -> None:
    """A picture whose EXIF is cut off or forged is taken as it lies."""
    data = encoded(corners(), exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff" + b"\x01\x12" * 9)
    assert prepare(data).source_size == (64, 32)


@pytest.mark.parametrize(
    ("size", "max_side", "result"),
    [
        ((2000, 1000), 500, (500, 250)),
        ((1000, 2000), 500, (250, 500)),
        ((100, 50), 500, (100, 50)),
        ((3000, 2), 300, (300, 1)),
        ((1, 1), 32, (1, 1)),
        ((1023, 767), 1024, (1023, 767)),
    ],
)
def test_pictures_are_made_smaller_and_never_larger(
    size: tuple[int, int], max_side: int, result: tuple[int, int]
) -> None:
    """The longer side has so many pixels at the most, and the proportions stay."""
    photo = prepare(encoded(scene(1, size)), max_side=max_side)
    assert (photo.width, photo.height) == result
    assert photo.source_size == size


def test_one_file_is_one_picture(tmp_path: Path) -> None:
    """The same bytes, from a path or from memory, are the same picture, told by the hash of the file."""
    data = photograph(5)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert prepare(path) == prepare(data)
    photo = prepare(data)
    assert photo.sha256 == sha256_of(path) == hashlib.sha256(data).hexdigest()
    assert (photo.source_bytes, photo.source_type) == (len(data), "image/jpeg")


def test_no_metadata_goes_along() -> None:
    """Where and when a picture was taken, and with what, is nobody's business but the photographer's."""
    data = photograph(5, orientation=6)
    assert b"Rolecall" in data
    image = Image.open(io.BytesIO(base64.b64decode(prepare(data).data_url.partition(",")[2])))
    assert not image.getexif()
    assert not {"exif", "icc_profile", "comment", "xmp"} & image.info.keys()


def frames(format_: str, **options: object) -> bytes:
    out = io.BytesIO()
    first, *rest = (Image.new("RGB", (40, 20), colour) for colour in (RED, GREEN, BLUE))
    first.save(out, format_, save_all=True, append_images=rest, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("format_", "options"), [("GIF", {"duration": 50}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})]
)
def test_the_first_frame_counts(format_: str, options: dict[str, object]) -> None:
    """Of an animation, and of a file of several pages, the first one is taken."""
    assert is_near(pixels(prepare(frames(format_, **options))).getpixel((20, 10)), RED)


MODES: dict[str, Callable[[], tuple[Image.Image, str]]] = {
    "grey": lambda: (Image.new("L", (20, 20), 128), "PNG"),
    "black and white": lambda: (Image.new("1", (20, 20), 1), "PNG"),
    "grey of 16 bits": lambda: (Image.new("I;16", (20, 20), 128 * 256), "PNG"),
    "grey of 16 bits, TIFF": lambda: (Image.new("I;16", (20, 20), 128 * 256), "TIFF"),
    "grey and alpha": lambda: (Image.new("LA", (20, 20), (128, 255)), "PNG"),
    "palette": lambda: (Image.new("RGB", (20, 20), (128, 128, 128)).quantize(4), "PNG"),
    "CMYK JPEG": lambda: (Image.new("CMYK", (20, 20), (0, 0, 0, 127)), "JPEG"),
    "CMYK TIFF": lambda: (Image.new("CMYK", (20, 20), (0, 0, 0, 127)), "TIFF"),
    "Lab": lambda: (Image.new("LAB", (20, 20), (137, 128, 128)), "TIFF"),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_pixels_is_read(mode: str) -> None:
    """A middle grey stays one, however it is stored."""
    image, format_ = MODES[mode]()
    wanted = (255, 255, 255) if mode == "black and white" else (128, 128, 128)
    assert is_near(pixels(prepare(encoded(image, format_))).getpixel((10, 10)), wanted, 6)


def png_16(value: int) -> bytes:
    """A PNG with three channels of 16 bits, which Pillow cannot write."""
    row = b"\0" + struct.pack(">3H", value, 0, 0) * 4
    chunks = [(b"IHDR", struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(row * 4)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tiff_16(value: int) -> bytes:
    """A TIFF of 8 × 8 pixels with three channels of 16 bits, as programs for raw files export."""
    data = struct.pack("<3H", value, 0, 0) * 64
    bits_at = 8 + 2 + 12 * 9 + 4
    short = {256: 8, 257: 8, 259: 1, 262: 2, 277: 3, 278: 8}
    tags = [(tag, 3, 1, struct.pack("<HH", each, 0)) for tag, each in short.items()]
    tags += [(258, 3, 3, struct.pack("<I", bits_at)), (273, 4, 1, struct.pack("<I", bits_at + 6))]
    tags += [(279, 4, 1, struct.pack("<I", len(data)))]
    entries = b"".join(struct.pack("<HHI", tag, kind, count) + held for tag, kind, count, held in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, 9) + entries + struct.pack("<I3H", 0, 16, 16, 16) + data


@pytest.mark.parametrize("data", [png_16(200 * 257), tiff_16(200 * 257)], ids=["PNG", "TIFF"])
def test_colours_of_16_bits_are_read(data: bytes) -> None:
    """The upper eight bits of each channel count."""
    assert is_near(pixels(prepare(data)).getpixel((2, 2)), (200, 0, 0), 12)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    """A drawing on no ground stands on white, as on a page."""
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((0, 0, 254, 255), (20, 0, 40, 20))
    seen = pixels(prepare(encoded(image if mode == "RGBA" else image.quantize(4), "PNG")))
    assert is_near(seen.getpixel((5, 10)), WHITE)
    assert is_near(seen.getpixel((35, 10)), BLUE)


def test_colours_mean_what_their_profile_says() -> None:
    """Models take all for sRGB: a picture in another colour space is converted, a profile that is none left alone."""
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = prepare(encoded(Image.new("RGB", (20, 20), (10, 200, 90)), icc_profile=lab_like, quality=100))
    assert is_near(pixels(same).getpixel((5, 5)), (10, 200, 90), 6)
    broken = prepare(encoded(Image.new("RGB", (20, 20), (10, 200, 90)), icc_profile=b"no profile", quality=100))
    assert is_near(pixels(broken).getpixel((5, 5)), (10, 200, 90), 6)
    cmyk = prepare(encoded(Image.new("CMYK", (20, 20), (0, 0, 0, 127)), icc_profile=lab_like))
    assert is_near(pixels(cmyk).getpixel((5, 5)), (128, 128, 128), 6)


def test_heic() -> None:
    """An iPhone's picture is read, upright, where its library is installed."""
    heif = pytest.importorskip("pillow_heif", reason="HEIC is an extra: rolecall[heic]")
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(corners(6)).save(out, quality=100, exif=exif.tobytes())
    photo = prepare(out.getvalue())
    assert (photo.source_type, photo.source_size) == ("image/heic", (64, 32))
    assert is_near(pixels(photo).getpixel((8, 4)), RED, 40)
    assert refusal(out.getvalue()[:200]).startswith("it ")


def test_heic_without_its_library() -> None:
    """Where the library is missing, the reason names what to install."""
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from rolecall.vision.photos import PhotoError, prepare\n"
        "try: prepare(b'\\0\\0\\0\\x18ftypheic' + bytes(64))\n"
        "except PhotoError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True).stdout
    assert said == "it is a HEIC picture, which needs a library more: pip install 'rolecall[heic]'\n"


# -- what is refused


CASES: dict[str, tuple[bytes, str]] = {
    "0 bytes": (b"", "it is empty (0 bytes)"),
    "text": (b"To whom it may concern\n" * 50, "it is not an image, or of no kind that is read here (JPEG, PNG, "),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "it is an SVG drawing, not a picture of pixels: export"),
    "SVG with a head": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "it is an SVG drawing"),
    "PDF": (b"%PDF-1.7\n", "it is a PDF, or of no kind that is read here"),
    "JPEG 2000": (encoded(scene(1), "JPEG2000"), "it is a JPEG 2000, or of no kind that is read here"),
    "floating point": (
        encoded(Image.new("F", (8, 8), 0.5), "TIFF"),
        "its pixels are floating-point numbers, as of HDR",
    ),
    "the beginning of a JPEG": (photograph(1)[:20], "it begins like an image and is none: cut off or damaged"),
    "half a JPEG": (encoded(scene(1, (300, 300)))[:3000], "it cannot be decoded: cut off or damaged"),
    "half a PNG": (encoded(scene(1, (300, 300)), "PNG")[:900], "it cannot be decoded: cut off or damaged"),
    "half a WebP": (encoded(scene(1, (300, 300)), "WEBP")[:400], "it "),
    "half a GIF": (frames("GIF")[:60], "it "),
    "half a TIFF": (encoded(scene(1), "TIFF")[:3000], "it "),
    "only a signature": (b"\x89PNG\r\n\x1a\n", "it begins like an image and is none: cut off or damaged"),
    "noise after a signature": (b"\xff\xd8\xff" + bytes(range(256)) * 9, "it begins like an image and is none"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_used_is_refused_in_words(name: str) -> None:
    """Each cause has a sentence of its own, without a name of a class or a function."""
    data, said = CASES[name]
    assert refusal(data).startswith(said)


def huge(width: int, height: int, colour_type: int = 2) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""
    header = struct.pack(">2I5B", width, height, 8, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_200_megapixels_are_refused_before_they_are_decoded() -> None:
    """A bomb of some bytes is refused by its head alone: the sizes are told, and nothing is unpacked."""
    assert refusal(huge(20_000, 10_000)) == "it has more than 178 megapixels"
    assert refusal(huge(12_000, 10_000)) == (
        "it has 12000 × 10000 pixels, 120 megapixels; 100 are the most that is read"
    )


def test_a_jpeg_of_200_megapixels_is_refused() -> None:
    """So is a JPEG, whose head is all that is needed to know it."""
    data = bytearray(encoded(Image.new("L", (8, 8))))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">2H", 10_000, 20_000)
    assert refusal(bytes(data)) == "it has more than 178 megapixels"


def test_a_large_jpeg_is_decoded_at_a_fraction() -> None:
    """What is too many pixels for other kinds is read of a JPEG, which never takes memory for all of them."""
    data = encoded(Image.new("L", (4000, 3000)))
    photo = prepare(data, max_side=400, max_pixels=1_000_000)
    assert (photo.width, photo.height) == (400, 300)
    assert "1 are the most that is read" in refusal(data, max_side=4000, max_pixels=1_000_000)


def test_limits_are_said(tmp_path: Path) -> None:
    """Files that are too large are refused while they are read, by path or from memory."""
    data = photograph(1) + b"\0" * 2**21
    path = tmp_path / "large.jpg"
    path.write_bytes(data)
    for source in (path, data):
        assert refusal(source, max_bytes=2**21) == "it has more than 2 MB"


def test_paths_that_are_none(tmp_path: Path) -> None:
    """A folder, a file that is not there, a pipe and one that may not be read are told apart."""
    assert refusal(tmp_path) == "it is a folder"
    assert refusal(tmp_path / "gone.jpg") == "it cannot be read: No such file or directory"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "pipe.jpg") == "it is no ordinary file"


@pytest.mark.parametrize("suffix", sorted(RAW_SUFFIXES))
def test_raw_files_are_refused_by_their_name(tmp_path: Path, suffix: str) -> None:
    """Most are TIFFs inside, of which only a thumbnail would be read."""
    path = tmp_path / f"a{suffix.upper()}"
    path.write_bytes(encoded(scene(1), "TIFF"))
    assert refusal(path) == f"it is a raw file ({suffix}): export it as a JPEG or TIFF"


def test_raw_files_are_refused_by_what_they_hold() -> None:
    """Without a name, a DNG is known by its tags."""
    data = encoded(scene(1), "TIFF", tiffinfo={50706: b"\1\4\0\0", 254: 1})
    assert refusal(data).startswith("it is a raw file, of which only a small preview could be read")


def test_names_of_pictures_and_of_raw_files_differ() -> None:
    """No file name is both."""
    assert not SUFFIXES & RAW_SUFFIXES


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF"]), st.data())
def test_no_damage_escapes(format_: str, data: st.DataObject) -> None:
    """A picture with any byte changed and cut anywhere is read, or refused as what it is: no other error comes out."""
    whole = bytearray(encoded(scene(2, (48, 32)), format_))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(PhotoError):
        photo = prepare(cut, max_side=64, max_pixels=1_000_000)
        assert max(photo.width, photo.height) <= 64
