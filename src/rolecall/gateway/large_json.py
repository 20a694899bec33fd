"""Large JSON, read and written without copying what makes it large, in steps that never hold the event loop up.

What makes bodies large are images and recordings, single texts of megabytes. These are cut out of each block as it
comes, and short marks take their place; what is left is parsed. Where media stand, a ``LongText`` of the very bytes
that came takes the place of the marks, and the body for the engine has them as its pieces. Other texts are put back.

A thread of its own does not help by itself: orjson keeps the interpreter to itself for as long as it works, and 1 MB
takes about a millisecond.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import orjson

from rolecall.core.long_text import LongText
from rolecall.core.media import is_data_uri, is_slot
from rolecall.errors import BodyTooLarge
from rolecall.gateway.http_request import Pieces

LARGE_BYTES = 2**18
"""What is smaller is read and written at once."""
MAX_REST_BYTES = 16 * 2**20
"""What may be left once long plain texts are cut out: orjson reads it in one go."""
BLOCK_BYTES = 2**16
"""Blocks are no smaller, but for the last one."""
TURN_S = 0.0002
"""How long others have their turn: a thread that wants the interpreter back at once mostly gets it."""
_STEP_BYTES = 2**15
_CUT_BYTES = 2**12
"""What is shorter is not worth a mark."""
_HEAD_BYTES = 2**10
"""Of a text these are left: they say what it is."""
_ESCAPE_BYTES = 6
"""The longest escape, ``\\u0041``: one that began in another block has its end within so many bytes."""
_DIGITS = 6
_LONG = 2**20
_MANY = 2000
_BOM = b"\xef\xbb\xbf"


class NotJson(ValueError):
    """A body that is no JSON; the message says why, and where."""


class LargeBody:
    """A body that comes in blocks; ``len`` is its size.

    What is cut out is known to lie within a text: what comes before is followed from one quotation mark to the next. It
    is plain, with nothing escaped and nothing beyond ASCII. So what is left is JSON if the body is, and only then.
    """

    def __init__(self) -> None:
        self.rest: list[bytes] = []
        """What is left to be parsed, in parts."""
        self.rest_bytes = 0
        self._mark = f"~{secrets.token_hex(16)}"
        self._cuts: list[tuple[int, memoryview]] = []  # where in the rest a mark is, and what it stands for
        self._size = 0
        self._in_text = self._is_escaped = False

    def __len__(self) -> int:
        """Return the bytes that came."""
        return self._size

    def add(self, block: bytes) -> None:
        """Take in the next block: cut out the end of a text that began before it, and the beginning of another."""
        if not self._size:
            block = block.removeprefix(_BOM)
        self._size += len(block)
        at, end = 0, len(block)
        if self._in_text:
            first = block.find(b'"')
            close = end if first < 0 else first
            if self._cut(block, 0, _ESCAPE_BYTES, close):
                at, self._is_escaped = close, False
        if at == end:
            return
        self._follow(block[at:])
        last = block.rfind(b'"', at) + 1
        if not (last and self._in_text and self._cut(block, at, last + _HEAD_BYTES, end, since=last)):
            self._keep(block[at:])

    def _cut(self, block: bytes, at: int, start: int, end: int, *, since: int = 0) -> bool:
        """Keep what lies before ``start`` and cut out the rest, if that is plain, and all ``since`` its text began."""
        if end - start < _CUT_BYTES or block.find(b"\\", since, end) >= 0 or not _is_plain(block, start, end):
            return False
        self._keep(block[at:start])
        self._cuts.append((self.rest_bytes, memoryview(block)[start:end]))
        self._keep(f"{self._mark}{len(self._cuts) - 1:0{_DIGITS}}".encode())
        return True

    def _keep(self, part: bytes) -> None:
        self.rest.append(part)
        self.rest_bytes += len(part)

    def _follow(self, part: bytes) -> None:
        """See whether what follows a part is within a text."""
        part = part[self._is_escaped :]
        self._is_escaped = (len(part) - len(part.rstrip(b"\\"))) % 2 == 1
        if b"\\" in part:
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        self._in_text ^= part.count(b'"') % 2 == 1

    def parsed(self, *, in_full: bool = False) -> Any:
        """Return the value, ``in_full`` without any ``LongText``.

        Raises ``NotJson``, and ``BodyTooLarge`` if more is left than can be read.
        """
        if self.rest_bytes > MAX_REST_BYTES:
            raise BodyTooLarge(
                f"Without pictures and other long plain texts the body has {self.rest_bytes} bytes; "
                f"{MAX_REST_BYTES} can be read."
            )
        try:
            holder = [orjson.loads(b"".join(self.rest))]
        except orjson.JSONDecodeError as error:
            raise NotJson(f"{error.msg} (byte {self._place(error.pos)})") from None
        if self._cuts:
            self._put_back(holder, in_full=in_full)
        return holder[0]

    def _place(self, place: int) -> int:
        """Return where in the body is what orjson saw at ``place`` of what is left of it."""
        mark = len(self._mark) + _DIGITS
        return place + sum(len(text) - mark for at, text in self._cuts if at < place)

    def _put_back(self, value: list[Any], *, in_full: bool) -> None:
        """Replace the texts that hold marks by what they stand for."""
        mark = self._mark
        left: list[tuple[Any, str]] = [(value, "")]
        while left:
            holder, key = left.pop()
            is_object = type(holder) is dict
            if is_object and any(mark in name for name in holder):
                raise NotJson("the name of a field is too long")
            for place, each in list(holder.items() if is_object else enumerate(holder)):
                if type(each) is str:
                    if mark in each:
                        name = place if is_object else key
                        holder[place] = self._whole(each.split(mark), may_be_long=is_slot(name) and not in_full)
                elif type(each) is dict or type(each) is list:
                    left.append((each, place if is_object else key))

    def _whole(self, parts: Sequence[str], *, may_be_long: bool) -> str | LongText:
        """Return the text whose parts a mark comes between, each with its number."""
        kept = [parts[0], *(part[_DIGITS:] for part in parts[1:])]
        texts = [self._cuts[int(part[:_DIGITS])][1] for part in parts[1:]]
        if may_be_long and all(len(orjson.dumps(part)) == len(part) + 2 for part in kept):  # nothing is escaped
            pieces: list[bytes | memoryview] = [kept[0].encode()]
            for text, part in zip(texts, kept[1:], strict=True):
                pieces += [text, part.encode()]
            long = LongText([piece for piece in pieces if piece])
            if _is_no_address(long):
                return long
        return kept[0] + "".join(str(text, "ascii") + part for text, part in zip(texts, kept[1:], strict=True))


def _is_plain(block: bytes, start: int, end: int) -> bool:
    """Whether a part without quotation marks and backslashes is text of ASCII to orjson, which is fast at it."""
    for at in range(start, end, _STEP_BYTES):
        step = block[at : min(at + _STEP_BYTES, end)]
        try:
            if len(orjson.loads(b'"%b"' % step)) != len(step):
                return False
        except orjson.JSONDecodeError:
            return False
    return True


def _is_no_address(text: LongText) -> bool:
    """Whether it is what a ``LongText`` may be: a data URI, or base64, which has no colon."""
    if is_data_uri(text):
        return "," in text[:_HEAD_BYTES]
    return text[:2] != "//" and not any(b":" in bytes(piece) for piece in text.pieces)


def in_blocks(body: bytes) -> LargeBody:
    """Return a body that is there as a whole as if it came in blocks."""
    large = LargeBody()
    for at in range(0, len(body), LARGE_BYTES):
        large.add(body[at : at + LARGE_BYTES])
    return large


def is_large(value: Any) -> bool:
    """Whether writing ``value`` would take long; what is not copied does not count."""
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


def dumps(value: Any) -> bytes | Pieces:
    """Return ``value`` as JSON, in pieces where it holds long texts; raises ``orjson.JSONEncodeError``."""
    mark = secrets.token_hex(16)
    texts: list[Sequence[bytes | memoryview]] = []
    parts = orjson.dumps(_cut_out(value, mark, texts)).split(mark.encode())
    if not texts:
        return parts[0]
    pieces: list[bytes | memoryview] = [parts[0]]
    for text, part in zip(texts, parts[1:], strict=True):
        pieces += [*text, part]
    return Pieces(pieces)


def _cut_out(value: Any, mark: str, texts: list[Sequence[bytes | memoryview]]) -> Any:
    """Return ``value`` with ``mark`` in place of long texts, in the order of these."""
    if isinstance(value, str):
        if len(value) < _LONG:
            return value
        time.sleep(TURN_S)
        texts.append([orjson.dumps(value[at : at + LARGE_BYTES])[1:-1] for at in range(0, len(value), LARGE_BYTES)])
        return mark
    if isinstance(value, LongText):
        texts.append(value.pieces)
        return mark
    if isinstance(value, dict):
        return {name: _cut_out(each, mark, texts) for name, each in value.items()}
    if isinstance(value, list):
        return [_cut_out(each, mark, texts) for each in value]
    return value
