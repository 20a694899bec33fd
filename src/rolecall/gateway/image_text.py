"""Images as requests hold them: data URIs and base64."""

from __future__ import annotations

import base64
import binascii

from rolecall.core.long_text import LongText
from rolecall.core.media import is_data_uri

_PIECE = 128 * 1024
"""Groups of three bytes, or four characters, that are coded in one step: no thread but the one that does it runs."""


_URI_HEAD = 64 * 1024


class Unreadable(ValueError):
    """An image that cannot be scaled down; the message says why and fits after "it"."""


def as_base64(data: bytes) -> str:
    """Return bytes as base64."""
    pieces = (data[start : start + 3 * _PIECE] for start in range(0, len(data), 3 * _PIECE))
    return "".join(base64.b64encode(piece).decode("ascii") for piece in pieces)


def decoded(text: str | LongText, characters: int | None = None) -> bytes:
    """Return the bytes of a data URI or of base64, or those of its first ``characters``; raises ``ValueError``."""
    start = 0
    if is_data_uri(text):
        head = text[:_URI_HEAD]
        start = head.find(",") + 1
        if ";base64" not in head[:start].lower():
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
