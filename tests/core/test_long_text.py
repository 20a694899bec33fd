"""A text that stays in pieces: for all that looks at media it is the string that it stands for."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.core.image_parts import check_parts
from rolecall.core.json_text import as_json
from rolecall.core.long_text import LongText
from rolecall.core.media import Places, find_media, is_data_uri, is_slot, shrunk_in_place
from rolecall.errors import RolecallError

URI = "data:image/png;base64,QUJDQUJDQUI="


def long(text: str) -> LongText:
    """Return a text in pieces of three bytes, in a block that holds more."""
    data = memoryview(b"[" + text.encode() + b"]")[1:-1]
    return LongText([data[at : at + 3] for at in range(0, len(data), 3)])


@pytest.mark.parametrize("places", [slice(0, 5), slice(-2, None), slice(3, 9), slice(4, 4), slice(None), slice(2, 100)])
def test_parts_of_a_long_text_are_those_of_the_string(places: slice) -> None:
    """Wherever its pieces begin and end."""
    text = long("abcdefghij")
    assert text[places] == "abcdefghij"[places]
    assert (str(text), len(text)) == ("abcdefghij", 10)


@pytest.mark.parametrize("text", [URI, "QUJDQUJDQUI=", "data:image/png;base64,", "data:image/png;base64,*", "data:,x"])
@pytest.mark.parametrize(
    "shape",
    [
        lambda text: {"type": "image_url", "image_url": {"url": text}},
        lambda text: {"type": "image_url", "image_url": [text]},
        lambda text: {"type": "input_audio", "input_audio": {"data": text}},
        lambda text: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}},
        lambda text: {"images": [text, text]},
    ],
)
def test_it_is_the_medium_that_its_string_would_be(text: str, shape: Any) -> None:
    """Kind, place and size, and what is wrong with it."""

    def told(body: Any) -> Any:
        media = find_media(body)
        try:
            check_parts(body, media)
        except RolecallError as error:
            return media, type(error), error.message
        return media

    as_string, in_pieces = ({"messages": [{"content": [shape(each)]}]} for each in (text, long(text)))
    assert told(as_string) == told(in_pieces)
    assert find_media(as_string)


def test_its_place_is_known_again() -> None:
    """By its very self, as that of a string."""
    body = {"images": [long(URI), long("QUJD")]}
    places = Places.of(body, find_media(body))
    assert places.place(body["images"][1], 7, "other") == (1, "images[1]")
    places.replace(body["images"][1], "smaller")
    assert places.place("smaller", 7, "other") == (1, "images[1]")
    assert places.place(long("QUJD"), 7, "other") == (7, "other")


def test_what_takes_its_place_has_its_form() -> None:
    """A data URI for a data URI."""
    body = {"image_url": long(URI)}
    assert is_data_uri(body["image_url"])
    assert shrunk_in_place(body, find_media(body)[0], "image/jpeg", "QQ==") == {
        ("image_url",): "data:image/jpeg;base64,QQ=="
    }


def test_it_is_shown_as_the_string() -> None:
    """Where an error shows a value that holds one."""
    assert as_json({"url": long("abc")}) == as_json({"url": "abc"})


def test_where_it_may_stand() -> None:
    """Where media stand in any form: what is there is never read as anything else."""
    assert is_slot("url")
    assert not is_slot("content")
