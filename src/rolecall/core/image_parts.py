"""Whether a part that is an image holds one: what no engine could read is refused before a model is loaded for it.

Looked at is the form alone, and of base64 the beginning. Whether it is a picture says who decodes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rolecall.core.json_text import MOST_SHOWN, as_json
from rolecall.core.long_text import TEXTS, LongText
from rolecall.core.media import Medium, Path, images, is_data_uri, value_at
from rolecall.errors import BadRequest, InvalidImage, InvalidImageUrl

_CHECKED = frozenset({"image_url", "input_image", "image"})
"""Types of parts. Others hold tensors or the names of files."""
_FROM_ELSEWHERE = ("uuid", "file_id")
"""Keys that name an image which the engine has: vLLM's, which then needs no other, and OpenAI's."""
_PLACES = ("image_url", "source", "image")
_URLS = frozenset({"url", "image_url", "uri"})
"""Keys that take an address or a data URI. llama.cpp takes base64 without a scheme as well."""

_SHOWN = 50
_SAMPLE = 64
_BARE = 40
"""Characters of base64 without a scheme: the smallest picture has more, and a path is no base64 or shorter."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{2,}=*")
_HEAD = 2**16
_DATA_URI = re.compile(r"data:[^,]{0,500};\s*base64\s*,", re.IGNORECASE)


def check_parts(body: Mapping[str, Any], media: Iterable[Medium]) -> None:
    """Raise ``InvalidImage`` or ``InvalidImageUrl`` for the first image of a body that holds none.

    ``media`` are those of the body, in their order.
    """
    for index, image in enumerate(images(media)):
        value = value_at(body, image.path)
        if isinstance(value, TEXTS):
            _check_text(index, image, value, _is_in_part(body, image.path))
        elif isinstance(image.path[-1], int):
            _check_empty(index, image, value)


def _check_empty(index: int, image: Medium, part: Mapping[str, Any]) -> None:
    """Refuse a part without an image, unless it is one of those that need none here."""
    held = next((part[place] for place in _PLACES if part.get(place) is not None), None)
    holders = (part, held) if isinstance(held, dict) else (part,)
    if part.get("type") in _CHECKED and not any(holder.get(key) for holder in holders for key in _FROM_ELSEWHERE):
        raise _wrong(InvalidImage, index, image, "holds none", held)


def _check_text(index: int, image: Medium, text: str | LongText, in_part: bool) -> None:  # noqa: FBT001 - of one caller
    key = image.path[-1]
    if in_part and isinstance(key, int) and image.path[-2] in _URLS:
        raise _wrong(InvalidImageUrl, index, image, "is in a list; its URL must be a string")
    if image.is_address:
        return
    sound = _is_base64(text)
    if is_data_uri(text):
        if problem := _problem_of_data_uri(text):
            raise _wrong(InvalidImage, index, image, problem, text[:_SHOWN])
    elif in_part and key in _URLS and not (sound and len(text) >= _BARE):
        raise _wrong(InvalidImageUrl, index, image, "is neither a URL nor a data URI", text[: MOST_SHOWN + 1])
    elif in_part and not sound:
        raise _wrong(InvalidImage, index, image, "is no base64", text[: MOST_SHOWN + 1])


def _problem_of_data_uri(text: str | LongText) -> str | None:
    """Return what is wrong with it, as words after the image's place."""
    head = _DATA_URI.match(text[:_HEAD])
    if head is None:
        return "is a data URI that is not base64"
    if not text[head.end() : head.end() + _SAMPLE].strip():
        return "is a data URI without data"
    return None if _is_base64(text, head.end()) else "is a data URI whose base64 is broken"


def _wrong(kind: type[BadRequest], index: int, image: Medium, problem: str, value: Any = None) -> BadRequest:
    """Return the error; what came is shown to the client and stays out of a log that may hold no prompts."""
    words = f"Image {index} at {image.param} {problem}"
    error = kind(f"{words}{'' if value is None else f': {as_json(value)}'}.", param=image.param)
    error.discreet = f"{words}."
    return error


def _is_base64(text: str | LongText, start: int = 0) -> bool:
    """Whether the beginning of a text can be base64, of either alphabet; engines differ about spaces and padding."""
    sample = "".join(text[start : start + _SAMPLE].split())
    return _BASE64.fullmatch(sample) is not None


def _is_in_part(body: Mapping[str, Any], path: Path) -> bool:
    """Whether what a path leads to stands in a part that is known to be an image."""
    node: Any = body
    for step in path:
        if isinstance(node, dict) and (_type_of(node) in _CHECKED or "image_url" in node):
            return True
        node = node[step]
    return False


def _type_of(node: Mapping[str, Any]) -> str:
    named = node.get("type")
    return named if isinstance(named, str) else ""
