"""Colours are measured, and have the names that people give them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from photographs import encoded, scene
from rolecall.vision.colours import measure, name_of
from rolecall.vision.photos import prepare


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((60, 60, 60), "dark grey"),
        ((128, 128, 128), "grey"),
        ((200, 200, 200), "light grey"),
        ((130, 128, 124), "grey"),
        ((255, 0, 0), "red"),
        ((255, 140, 0), "orange"),
        ((255, 230, 0), "yellow"),
        ((0, 160, 0), "green"),
        ((64, 200, 190), "turquoise"),
        ((0, 0, 200), "blue"),
        ((0, 0, 90), "dark blue"),
        ((135, 206, 250), "light blue"),
        ((120, 0, 255), "violet"),
        ((255, 0, 200), "magenta"),
        ((255, 192, 203), "pink"),
        ((139, 69, 19), "brown"),
        ((60, 30, 10), "dark brown"),
        ((222, 206, 176), "beige"),
        ((150, 100, 90), "pale red"),
    ],
)
def test_names(rgb: tuple[int, int, int], name: str) -> None:
    """Colours are called what people call them, brown and pink too, which have no hue of their own."""
    assert name_of(*rgb) == name


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_every_colour_has_a_name(red: int, green: int, blue: int) -> None:
    """Whatever the colour, its name is one or two words."""
    assert re.fullmatch(r"(dark |light |pale )?[a-z-]+", name_of(red, green, blue))


def test_shares_are_those_of_the_area() -> None:
    """Three quarters blue and a quarter orange are that, the largest first."""
    image = Image.new("RGB", (400, 200), (0, 0, 200))
    image.paste((255, 140, 0), (0, 0, 100, 200))
    colours = measure(prepare(encoded(image, "PNG"), jpeg_quality=100))
    blue, orange = colours.dominant[:2]
    assert (blue.name, orange.name) == ("blue", "orange")
    assert blue.share == pytest.approx(0.75, abs=0.02)
    assert orange.share == pytest.approx(0.25, abs=0.02)
    assert not colours.is_monochrome


@pytest.mark.parametrize(("level", "words"), [(20, "dark"), (128, "of middle brightness"), (240, "bright")])
def test_brightness(level: int, words: str) -> None:
    """How bright a picture is as a whole is told; a grey one is black and white."""
    colours = measure(prepare(encoded(Image.new("L", (50, 50), level), "PNG")))
    assert colours.brightness == pytest.approx(level / 255, abs=0.02)
    assert f"On the whole: {words} (" in colours.in_words()
    assert "black and white" in colours.in_words()


@pytest.mark.parametrize("seed", range(5))
def test_words_for_a_prompt(seed: int) -> None:
    """Each colour has a line with its name, its value and its share, which do not exceed the whole."""
    colours = measure(prepare(encoded(scene(seed, (300, 200)))))
    *lines, _ = colours.in_words().splitlines()
    assert 1 <= len(lines) <= 6
    assert all(re.fullmatch(r"- [a-z -]+ \(#[0-9a-f]{6}\): \d+%", line) for line in lines)
    assert sum(colour.share for colour in colours.dominant) <= 1.0001
