"""What is measured of a text instead of tokenizing it: its characters by kind, and its runs.

Tokenizers of language models first cut a text into words, numbers, marks and white space and then each of these into
pieces. So the number of such runs says most, and the characters in them the rest; which tokenizer makes how many tokens
of which kind is learnt (`token_estimate`). Each kind is counted by operations on whole strings of bytes, in a few
milliseconds for any text: of a very long one, slices are enough. Texts are measured together, with a vertical tab
between them, which counts as nothing. Images are counted and never looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, AnyStr

MOST_CHARACTERS, SAMPLE_BYTES = 2**18, 2**14
"""Of a longer text the characters, and of one longer than `SAMPLE_BYTES` the runs, are counted in `SLICES` slices."""
SLICES = 32

_LOWER, _UPPER, _JOINT = b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "\v"
_KINDS = (
    ("lower", _LOWER),
    ("upper", _UPPER),
    ("digits", b"0123456789"),
    ("spaces", b" "),
    ("layout", b"\t\n\r"),
    ("joints", _JOINT.encode()),
)
_ASCII, _WIDE, _FOLLOWING = bytes(range(0x80)), bytes(range(0x80, 0x100)), bytes(range(0x80, 0xC0))
_TWO_BYTES, _THREE_BYTES = bytes(range(0xC0, 0xE0)), bytes(range(0xE0, 0xF0))
_A, _SPACE = b"a", b" "
_LAYOUT_RUN = re.compile(rb"[\r\n\t]\s*|  +")
_LONG = _A * 7


def _keep(kept: bytes) -> bytes:
    """A table for ``bytes.translate`` that makes an ``a`` of what is kept, and a space of all else."""
    return bytes((_A if code in kept else _SPACE)[0] for code in range(0x100))


_WORDS, _IS_WIDE = _keep(_LOWER + _UPPER), _keep(_WIDE)
_MARKS = _keep(bytes(code for code in range(33, 127) if not chr(code).isalnum()))


@dataclass(frozen=True, slots=True)
class TextSize:
    """How much there is of each kind; sizes of parts add up to that of the whole.

    ``two_bytes`` to ``four_bytes`` are characters by their length in UTF-8: other alphabets, CJK, emoji. ``chunks`` are
    what white space separates, ``wide_runs`` runs of anything but ASCII, ``layout_runs`` of more than a single space,
    ``long_words`` pieces of seven letters. ``reasoning`` is in bytes, apart because most chat templates leave out that
    of past answers.
    """

    lower: int = 0
    upper: int = 0
    digits: int = 0
    spaces: int = 0
    layout: int = 0
    marks: int = 0
    two_bytes: int = 0
    three_bytes: int = 0
    four_bytes: int = 0
    words: int = 0
    long_words: int = 0
    mark_runs: int = 0
    chunks: int = 0
    layout_runs: int = 0
    wide_runs: int = 0
    reasoning: int = 0
    messages: int = 0
    tools: int = 0
    images: int = 0

    def __add__(self, other: TextSize) -> TextSize:
        """Return the size of both together."""
        return TextSize(*(getattr(self, name) + getattr(other, name) for name in _NAMES))

    @property
    def text_bytes(self) -> int:
        """The bytes of all text in UTF-8, without reasoning."""
        ascii_bytes = self.lower + self.upper + self.digits + self.spaces + self.layout + self.marks
        return ascii_bytes + 2 * self.two_bytes + 3 * self.three_bytes + 4 * self.four_bytes


_NAMES = tuple(field.name for field in fields(TextSize))
NOTHING = TextSize()


def total(sizes: Iterable[TextSize]) -> TextSize:
    """Return the sum of many sizes."""
    columns = zip(*([getattr(size, name) for name in _NAMES] for size in (NOTHING, *sizes)), strict=True)
    return TextSize(*map(sum, columns))


def measure_text(text: str) -> TextSize:
    """Return the size of one text."""
    return _measure_all((text,))


def measure_message(message: Mapping[str, Any]) -> TextSize:
    """Return the size of one message: role, name, text, tool calls and results; images are counted only."""
    found = _Found()
    found.add_message(message)
    return found.size()


def measure_tools(body: Mapping[str, Any]) -> TextSize:
    """Return the size of the tools on offer, as the JSON that chat templates make of them."""
    found = _Found()
    found.add_tools(body)
    return found.size()


def measure(body: Mapping[str, Any]) -> TextSize:
    """Return the size of a request's prompt: of its messages, tools, and what other endpoints have instead.

    ``messages``, ``tools`` and ``functions`` of chat requests; ``prompt`` of completions; ``system`` of /v1/messages;
    ``instructions`` and ``input`` of /v1/responses and of embeddings. What has another form than it should counts as
    nothing: that is for the engine to refuse.
    """
    found = _Found()
    for turn in (*_listed(body.get("messages")), *_listed(body.get("input"))):
        if isinstance(turn, Mapping):
            found.add_message(turn)
        else:
            found.add_text(turn)
    for key in ("prompt", "system", "instructions"):
        found.add_content(body.get(key))
    found.add_tools(body)
    return found.size()


class _Found:
    """The texts of a request, and what is counted besides."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._messages = self._tools = self._images = self._reasoning = 0

    def size(self) -> TextSize:
        """Return the size of all that was added."""
        text = _measure_all(self._texts)
        return replace(text, reasoning=self._reasoning, messages=self._messages, tools=self._tools, images=self._images)

    def add_message(self, message: Mapping[str, Any]) -> None:
        self._messages += 1
        for key in ("role", "name", "arguments"):
            self.add_text(message.get(key))
        for key in ("content", "output"):
            self.add_content(message.get(key))
        for call in _listed(message.get("tool_calls")):
            self._texts.append(_as_json(call))
        thoughts = (message.get(key) for key in ("reasoning_content", "reasoning"))
        self._reasoning += max((len(_encode(one)) for one in thoughts if isinstance(one, str)), default=0)

    def add_tools(self, body: Mapping[str, Any]) -> None:
        tools = [*_listed(body.get("tools")), *_listed(body.get("functions"))]
        if tools:
            self._tools += len(tools)
            self._texts.append(_as_json(tools))

    def add_content(self, content: Any, *, is_nested: bool = False) -> None:
        """Add a text, or parts of which some are texts, images, and results of tools with parts of their own."""
        for part in _listed(content):
            if not isinstance(part, Mapping):
                self.add_text(part)
            elif "image" in str(part.get("type")):
                self._images += 1
            else:
                self.add_text(part.get("text"))
                self.add_text(part.get("thinking"))
                if isinstance(part.get("input"), Mapping):
                    self._texts.append(_as_json(part["input"]))
                if not is_nested:
                    self.add_content(part.get("content"), is_nested=True)

    def add_text(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self._texts.append(text)


def _measure_all(texts: Sequence[str]) -> TextSize:
    text = _JOINT.join(texts)
    part = _slices(text, MOST_CHARACTERS, _JOINT)
    data = _encode(part)
    sample = _slices(data, SAMPLE_BYTES, _JOINT.encode())
    is_wide = not part.isascii()
    whole, seen = len(text) / max(1, len(part)), len(data) / max(1, len(sample))
    counts = {name: round(whole * count) for name, count in _characters(data, is_wide=is_wide).items()}
    runs = {name: round(whole * seen * count) for name, count in _runs(sample, is_wide=is_wide).items()}
    return TextSize(**counts, **runs)


def _slices(text: AnyStr, most: int, joint: AnyStr) -> AnyStr:
    """Return a text of at most ``most`` characters or bytes as it is, of a longer one slices from all over it."""
    if len(text) <= most:
        return text
    size, step = most // SLICES, (len(text) - most // SLICES) // (SLICES - 1)
    return joint.join(text[start : start + size] for start in range(0, SLICES * step, step))


def _characters(data: bytes, *, is_wide: bool) -> dict[str, int]:
    """Count characters by kind; each step looks only at what the ones before it have left."""
    rest = data.translate(None, _WIDE) if is_wide else data
    counts = {}
    for name, kind in _KINDS:
        less = rest.translate(None, kind)
        counts[name] = len(rest) - len(less)
        rest = less
    counts["marks"] = len(rest)
    if is_wide:
        leading = data.translate(None, _ASCII + _FOLLOWING)
        longer = leading.translate(None, _TWO_BYTES)
        longest = longer.translate(None, _THREE_BYTES)
        counts["two_bytes"], counts["three_bytes"] = len(leading) - len(longer), len(longer) - len(longest)
        counts["four_bytes"] = len(longest)
    counts.pop("joints")
    return counts


def _runs(sample: bytes, *, is_wide: bool) -> dict[str, int]:
    words = sample.translate(_WORDS)
    return {
        "words": len(words.split()),
        "long_words": words.count(_LONG),
        "mark_runs": len(sample.translate(_MARKS).split()),
        "chunks": len(sample.split()),
        "layout_runs": len(_LAYOUT_RUN.findall(sample)),
        "wide_runs": len(sample.translate(_IS_WIDE).split()) if is_wide else 0,
    }


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) else []


def _as_json(value: Any) -> str:
    """JSON as Jinja's ``tojson`` and Python write it, with a space after each comma and colon."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return ""
