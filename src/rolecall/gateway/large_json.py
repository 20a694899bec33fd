"""Large JSON, read and written in steps that never hold the event loop up.

A thread of its own does not help by itself: orjson keeps the interpreter to itself for as long as it works, and 1 MB
takes about a millisecond. What makes bodies large are images and recordings, single texts of megabytes, so these are
cut out and put back: each step is short, and the loop has its turn in between. Joining bytes lets it run as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from rolecall.errors import BodyTooLarge

LARGE_BYTES = 2**18
"""What is smaller is read and written at once."""
MAX_REST_BYTES = 16 * 2**20
"""What may be left once long plain texts are cut out: orjson reads it in one go."""
_LONG = 2**20
_STEP = 2**17
_MANY = 2000
_CONTROLS = bytes(range(32))
_AFTER_A_TEXT = frozenset(b",:]} \t\r\n")


def is_large(value: Any) -> bool:
    """Whether writing ``value`` would take long."""
    left, nodes = [value], 0
    size = 0
    while left:
        each = left.pop()
        nodes += 1
        if isinstance(each, str):
            size += len(each)
        elif isinstance(each, dict):
            left.extend(each.values())
        elif isinstance(each, list):
            left.extend(each)
        if size > LARGE_BYTES or nodes + len(left) > _MANY:
            return True
    return False


class NotJson(ValueError):
    """A body that is no JSON; the message says why, and where."""


def loads(body: bytes) -> Any:
    """Parse ``body``; raises ``NotJson``, and ``BodyTooLarge`` for one that holds more text than can be read."""
    spans = list(_long_texts(body))
    rest = len(body) - sum(end - start for start, end in spans)
    if rest > MAX_REST_BYTES:
        raise BodyTooLarge(
            f"Without pictures and other long plain texts the body has {rest} bytes; {MAX_REST_BYTES} can be read."
        )
    if not spans:
        return _parsed(body, lambda place: place)
    token = secrets.token_hex(16)
    texts, parts, at = {}, [], 0
    for number, (start, end) in enumerate(spans):
        name = f"{token}{number}"
        texts[name] = body[start:end].decode("ascii")
        parts += [body[at:start], name.encode()]
        at = end
    holder = [_parsed(b"".join([*parts, body[at:]]), lambda place: _place(place, spans, token))]
    if _put_back(holder, texts) != len(texts):
        raise NotJson("the name of a field is too long")
    return holder[0]


def _parsed(data: bytes, place_of: Callable[[int], int]) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NotJson(f"{error.msg} (byte {place_of(error.pos)})") from None


def _place(place: int, spans: Sequence[tuple[int, int]], token: str) -> int:
    """Return where in the body is what orjson saw at ``place`` of what is left of it."""
    for number, (start, end) in enumerate(spans):
        if place > start:
            place += end - start - len(f"{token}{number}")
    return place


def _long_texts(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield where there seem to be long texts of plain characters: nothing escaped, nothing beyond ASCII.

    Looked for are two quotation marks far from each other. In JSON one that ends a text is followed by a comma, a
    colon, a bracket or a space; one with a backslash before it stands within a text. Texts that look like these stay
    where they are. So if what is left is no JSON, the body is none.
    """
    probe = _LONG
    while probe < len(body):
        start = body.rfind(b'"', probe - _LONG, probe) + 1
        if not start:
            start = body.rfind(b'"', 0, probe) + 1
        end = body.find(b'"', probe)
        if end < 0:
            return
        is_long = start > 0 and end - start >= _LONG
        if is_long and _begins_text(body, start) and _is_plain(body, start, end):
            yield start, end
        probe = max(end + 1, probe) + _LONG


def _begins_text(body: bytes, start: int) -> bool:
    return body[start] not in _AFTER_A_TEXT and body[start - 2 : start - 1] != b"\\"


def _is_plain(body: bytes, start: int, end: int) -> bool:
    for at in range(start, end, _STEP):
        step = body[at : min(at + _STEP, end)]
        if not step.isascii() or b"\\" in step or len(step.translate(None, _CONTROLS)) != len(step):
            return False
    return True


def _put_back(value: list[Any], texts: Mapping[str, str]) -> int:
    """Replace the names of texts by these; returns how many were found."""
    found = 0
    left: list[Any] = [value]
    while left:
        holder = left.pop()
        places: Any = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for place, each in list(places):
            if isinstance(each, str):
                if each in texts:
                    holder[place] = texts[each]
                    found += 1
            elif isinstance(each, dict | list):
                left.append(each)
    return found


def dumps(value: Any) -> bytes:
    """Return ``value`` as JSON; raises ``orjson.JSONEncodeError`` as orjson does."""
    token = secrets.token_hex(16)
    texts: list[str] = []
    parts = orjson.dumps(_cut_out(value, token, texts)).split(token.encode())
    whole = [parts[0]]
    for text, rest in zip(texts, parts[1:], strict=True):
        steps = (text[at : at + _STEP] for at in range(0, len(text), _STEP))
        whole += [orjson.dumps(step)[1:-1] for step in steps]
        whole.append(rest)
    return b"".join(whole)


def _cut_out(value: Any, token: str, texts: list[str]) -> Any:
    """Return ``value`` with ``token`` in place of long texts, in the order of these; what holds none is not copied."""
    if isinstance(value, str):
        if len(value) < _LONG:
            return value
        texts.append(value)
        return token
    if isinstance(value, dict):
        return {name: _cut_out(each, token, texts) for name, each in value.items()}
    if isinstance(value, list):
        return [_cut_out(each, token, texts) for each in value]
    return value
