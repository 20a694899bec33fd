"""What an engine prints, from its log: the last lines, and those to come, through new starts and emptied files.

The file is looked at twice a second: that works on every file system, and the engine, not rolecall, writes to it. What
goes out is plain text without the keys and tokens that programs print of their own command lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LOOK_S = 0.5
MOST_LINES = 500
"""At a time."""
LONGEST_LINE = 4000
"""Characters."""

_MOST_BYTES = 2**20
"""Of new output, that is read at a time; what is between is left out."""
_TAIL_BYTES = 4 * 2**20
_HIDDEN = "[key]"
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_TOKENS = re.compile(r"\b(?:rc-[A-Za-z0-9]{20,}|hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,})")
_NAMED = re.compile(
    r"(?i)(\b(?:[\w-]*api[_-]?keys?|(?:access|auth|hub|hf|secret)[_-]?(?:token|key)|password|bearer)"
    r"(?:[\"']?\s*[:=]\s*|\s+)[\[(\"']*)(?![\[(\"'])([^\s\"',)\]}]{6,})"
)
_SHORTEST_SECRET = 6


def plain(line: bytes, secrets: Iterable[str] = ()) -> str:
    """Return a line as text that can be shown anywhere; ``secrets`` in it are hidden."""
    text = line[-_TAIL_BYTES:].decode(errors="replace").rstrip("\r\n")
    text = _CONTROLS.sub("", _ESCAPES.sub("", text.rpartition("\r")[2]))[: 2 * LONGEST_LINE]
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN)
    text = _NAMED.sub(rf"\1{_HIDDEN}", _TOKENS.sub(_HIDDEN, text))
    return text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + "…"


@dataclass(slots=True)
class News:
    """Lines that are new; ``is_restart`` if they are those of a new start, ``skipped`` were left out before them."""

    lines: list[bytes] = field(default_factory=list)
    skipped: int = 0
    is_restart: bool = False


@dataclass(slots=True)
class OutputFile:
    """A log that is followed. Its methods wait for the disk: call them in a thread, one at a time."""

    path: Path
    _inode: int | None = None
    _position: int = 0
    _half: bytes = b""

    def last(self, count: int) -> News:
        """Return the last lines, and go on behind them."""
        news = self._read(_TAIL_BYTES)
        news.is_restart = False
        kept = news.lines[len(news.lines) - count :] if count < len(news.lines) else news.lines
        return News(kept)

    def more(self) -> News:
        """Return the lines that were written since the last call."""
        news = self._read(_MOST_BYTES)
        if (excess := len(news.lines) - MOST_LINES) > 0:
            news.lines, news.skipped = news.lines[excess:], news.skipped + excess
        return news

    def _read(self, most_bytes: int) -> News:
        news = News()
        with suppress(OSError), self.path.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._position:
                news.is_restart = self._inode is not None or self._position > 0
                self._inode, self._position, self._half = found.st_ino, 0, b""
            start = max(self._position, found.st_size - most_bytes)
            file.seek(start)
            data = file.read(found.st_size - start)
            if start > self._position:  # more than can be shown; the first line is cut, so it goes as well
                self._half, news.skipped = b"", 1
                data = data.partition(b"\n")[2]
            self._position = found.st_size
            *news.lines, self._half = (self._half + data).split(b"\n")
            self._half = self._half[-_MOST_BYTES:]
        return news
