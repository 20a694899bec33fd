"""The colours of a picture: measured, so that a model that is asked about them does not have to guess."""

from __future__ import annotations

import base64
import colorsys
import io
from dataclasses import dataclass

from PIL import Image, ImageStat

from rolecall.vision.photos import Photo

_SAMPLE_SIDE = 160
_CLUSTERS = 16
_LEAST_SHARE = 0.02
_MOST = 6
_DARK, _BRIGHT = 0.3, 0.7
_FAINT = 0.12
"""Saturation below which a colour counts as a grey."""


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour of a picture: in words and as ``#rrggbb``, and the share of the area that it covers (0 to 1)."""

    name: str
    hex: str
    share: float


@dataclass(frozen=True, slots=True)
class Colours:
    """The largest colours of a picture, the largest first; brightness and saturation are means from 0 to 1."""

    dominant: tuple[Colour, ...]
    brightness: float
    saturation: float

    @property
    def is_monochrome(self) -> bool:
        """Whether no colour has enough saturation to be told from grey."""
        return self.saturation < _FAINT / 2

    def in_words(self) -> str:
        """Return them for a prompt: one colour a line, then brightness and saturation."""
        lines = [f"- {colour.name} ({colour.hex}): {colour.share:.0%}" for colour in self.dominant]
        level = "dark" if self.brightness < _DARK else "bright" if self.brightness > _BRIGHT else "of middle brightness"
        kind = "black and white, or nearly" if self.is_monochrome else f"mean saturation {self.saturation:.0%}"
        return "\n".join([*lines, f"On the whole: {level} (mean brightness {self.brightness:.0%}); {kind}."])


def measure(photo: Photo) -> Colours:
    """Return the colours of a prepared picture; takes some milliseconds of one processor.

    The picture is cut into 16 colours (median cut) of the mean that each stands for, those of one name are added up,
    and the largest that cover 2 % or more are named. Brightness and saturation are HSV's.
    """
    data = base64.b64decode(photo.data_url.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.BOX)
        sample = image.convert("RGB")
    _, saturation, value = ImageStat.Stat(sample.convert("HSV")).mean
    return Colours(tuple(_dominant(sample)), round(value / 255, 4), round(saturation / 255, 4))


def _dominant(sample: Image.Image) -> list[Colour]:
    reduced = sample.quantize(_CLUSTERS, method=Image.Quantize.MEDIANCUT)
    palette = reduced.getpalette() or []
    pixels = sample.width * sample.height
    found: dict[str, list[tuple[int, tuple[int, int, int]]]] = {}
    for count, index in reduced.getcolors(_CLUSTERS) or ():
        assert isinstance(index, int)  # noqa: S101 - of an image with a palette
        red, green, blue = palette[3 * index : 3 * index + 3]
        found.setdefault(name_of(red, green, blue), []).append((count, (red, green, blue)))
    colours = [_together(name, parts, pixels) for name, parts in found.items()]
    colours.sort(key=lambda colour: (-colour.share, colour.name))
    return [colour for colour in colours if colour.share >= _LEAST_SHARE][:_MOST]


def _together(name: str, parts: list[tuple[int, tuple[int, int, int]]], pixels: int) -> Colour:
    count = sum(count for count, _ in parts)
    mean = (round(sum(count * rgb[channel] for count, rgb in parts) / count) for channel in range(3))
    return Colour(name, "#" + "".join(f"{part:02x}" for part in mean), round(count / pixels, 4))


def name_of(red: int, green: int, blue: int) -> str:
    """Return the name of an sRGB colour: one of ten hues, with how light and how strong it is; or a grey.

    Hue, lightness and saturation are HSL's. Brown is dark orange, pink light red, as people call them.
    """
    hue, lightness, strength = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    chroma = (max(red, green, blue) - min(red, green, blue)) / 255
    if chroma < _FAINT / 1.5 or strength < _FAINT or not 0.08 <= lightness <= 0.95:
        return next(name for end, name in _GREYS if lightness < end)
    name = next(name for end, name in _HUES if hue * 360 < end)
    special = _special(name, lightness, strength)
    if special:
        return special
    level = "dark " if lightness < 0.25 else "light " if lightness > 0.72 else "pale " if strength < 0.35 else ""
    return level + name


def _special(name: str, lightness: float, strength: float) -> str | None:
    """Return what people call some dark, light and weak colours instead of by their hue."""
    if name == "orange" and strength < 0.5 and lightness > 0.6:
        return "beige"
    if lightness < 0.4 and (name == "orange" or (name == "red" and strength < 0.5)):
        return "dark brown" if lightness < 0.2 else "brown"
    if name == "orange" and strength < 0.5:
        return "brown"
    return "pink" if name == "red" and lightness > 0.7 else None


_GREYS = ((0.08, "black"), (0.33, "dark grey"), (0.67, "grey"), (0.95, "light grey"), (2, "white"))
"""Up to which lightness each reaches."""
_HUES = (
    (14, "red"),
    (44, "orange"),
    (68, "yellow"),
    (85, "yellow-green"),
    (160, "green"),
    (198, "turquoise"),
    (255, "blue"),
    (290, "violet"),
    (335, "magenta"),
    (361, "red"),
)
"""Where on the colour circle, in degrees, each hue ends."""
