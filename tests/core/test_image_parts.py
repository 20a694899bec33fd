"""Parts that are an image and hold none, or one that nobody could read."""

from __future__ import annotations

from typing import Any

import pytest

from rolecall.core.image_parts import check_parts
from rolecall.core.media import find_media
from rolecall.errors import BadRequest, InvalidImage, InvalidImageUrl

GIF = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
"""The smallest picture there is."""
GOOD = {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{GIF}"}}


def check(*parts: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}
    check_parts(body, find_media(body))


def by_url(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    ("part", "kind", "words"),
    [
        (by_url(""), InvalidImage, 'holds none: {"url": ""}'),
        (by_url(None), InvalidImage, 'holds none: {"url": null}'),
        (by_url(5), InvalidImage, 'holds none: {"url": 5}'),
        (by_url({}), InvalidImage, 'holds none: {"url": {}}'),
        ({"type": "image_url", "image_url": {}}, InvalidImage, "holds none: {}"),
        ({"type": "image_url", "image_url": 5}, InvalidImage, "holds none: 5"),
        ({"type": "image_url", "image_url": ""}, InvalidImage, 'holds none: ""'),
        ({"type": "image_url", "image_url": None}, InvalidImage, "holds none"),
        ({"type": "image_url"}, InvalidImage, "holds none"),
        ({"type": "input_image", "image_url": None, "file_id": None}, InvalidImage, "holds none"),
        ({"type": "image", "source": 7}, InvalidImage, "holds none: 7"),
        ({"type": "image", "source": {"type": "base64", "data": ""}}, InvalidImage, "holds none"),
        ({"type": "image", "source": {"type": "base64", "data": "cat.png"}}, InvalidImage, 'is no base64: "cat.png"'),
        (by_url("x"), InvalidImageUrl, 'neither a URL nor a data URI: "x"'),
        (by_url("cat.png"), InvalidImageUrl, 'neither a URL nor a data URI: "cat.png"'),
        (by_url("/etc/passwd"), InvalidImageUrl, "neither a URL nor a data URI"),
        (by_url("/home/me/pictures/of/many/many/cats/cat.png"), InvalidImageUrl, "neither a URL nor a data URI"),
        ({"type": "input_image", "image_url": "cat.png"}, InvalidImageUrl, "neither a URL nor a data URI"),
        (by_url(["x"]), InvalidImageUrl, "must be a string"),
        (by_url(["https://example.org/x"]), InvalidImageUrl, "must be a string"),
        (by_url("data:"), InvalidImage, "a data URI that is not base64"),
        (by_url("data:,x"), InvalidImage, "a data URI that is not base64"),
        (by_url("data:image/svg+xml;utf8,<svg/>"), InvalidImage, "a data URI that is not base64"),
        (by_url(f"data:image/gif,{GIF}"), InvalidImage, "a data URI that is not base64"),
        (by_url("data:image/png;base64,"), InvalidImage, "a data URI without data"),
        (by_url("data:image/png;base64, \n"), InvalidImage, "a data URI without data"),
        (by_url("data:image/png;base64,%%%"), InvalidImage, "whose base64 is broken"),
        (by_url("data:image/png;base64,A"), InvalidImage, "whose base64 is broken"),
        (by_url("data:image/png;base64,<html>"), InvalidImage, "whose base64 is broken"),
    ],
)
def test_what_no_engine_could_read_is_refused(part: dict[str, Any], kind: type[BadRequest], words: str) -> None:
    """The error says which image it is, where, and what is wrong with it."""
    with pytest.raises(BadRequest) as caught:
        check(GOOD, {"type": "text", "text": "look"}, part)
    error = caught.value
    assert type(error) is kind
    assert error.status == 400
    assert error.param is not None
    assert error.param.startswith("messages[0].content[2]")
    assert error.message.startswith(f"Image 1 at {error.param} ")
    assert words in error.message
    assert len(error.message) < 200
    assert error.summary(discreetly=True) == f"{error.code}: {error.message.partition(': ')[0].rstrip('.')}."


@pytest.mark.parametrize(
    "part",
    [
        GOOD,
        by_url(f"DATA:image/gif;charset=utf-8;BASE64,{GIF}"),
        by_url(f"data:;base64,\n{GIF}"),
        by_url("data:image/png;base64,AAAA"),
        by_url("data:image/png;base64,QQ=="),
        by_url("data:image/png;base64," + "-_" * 40),
        by_url(GIF),
        by_url("https://example.org/cat.png"),
        by_url("file:///etc/passwd"),
        {"type": "image_url", "uuid": "1"},
        {"type": "image_url", "image_url": None, "uuid": "1"},
        {"type": "image_url", "image_url": {"url": "", "uuid": "1"}},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": GIF}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "eHh4"}},
        {"type": "image", "data": GIF, "mimeType": "image/gif"},
        {"type": "image_embeds", "image_embeds": {"x": "AAAA"}},
        {"type": "image_file", "image_file": {"file_id": "1"}},
        {"type": "text", "text": "a", "image_url": None},
        {"type": "text", "text": "a", "images": ["some words"]},
        {"type": ["image_url"]},
    ],
)
def test_what_engines_take_passes(part: dict[str, Any]) -> None:
    """Base64 alone, parameters, either alphabet, and images that the engine has already."""
    check(part)


def test_an_image_beside_the_parts_is_nobodys_part() -> None:
    """A type that stands in no list is no part of a content, and what it holds is not judged."""
    body = {"model": "m", "x": {"type": "image"}, "image": "words"}
    check_parts(body, find_media(body))
