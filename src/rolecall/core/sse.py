"""A server-sent event stream as it passes: read, and where somebody wants that, rewritten event by event.

Each event that is not like the one before it is parsed.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import orjson

from rolecall.core.answer import Answer
from rolecall.core.event_pattern import EventPattern

__all__ = ["MAX_EVENT_BYTES", "Answer", "Rewriter", "StreamWatch", "encode"]

_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
_LF_LF = re.compile(rb"\n\n")
"""The same where there is no CR: it is found five times as fast."""
_NAME = re.compile(r"[\w.]+")
_CONTROLS = (b"id", b"retry")
_UNWANTED = re.compile(rb"(?:^|[\r\n])(?:(?:id|retry)(?:[:\r\n]|$)|:[ \t]*(?:[\r\n]|$))")
_PING = b": ping"
_OVERLAP = 2
MAX_EVENT_BYTES = 4 * 2**20
"""A longer event is passed on unread: nothing that is watched for is that long."""


class Rewriter(Protocol):
    """Changes the events of one stream."""

    def rewrite(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return what goes on in place of a message: the same object where it is to pass as it came, byte for byte."""
        ...

    def flush(self) -> dict[str, Any] | None:
        """Return what was held back so far as a message of its own, None if nothing was; the stream is over."""
        ...

    @property
    def is_steady(self) -> bool:
        """Whether the next message, if it is like the last one but for its text, goes on like that, too."""
        ...


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as an event; one that says its ``type`` (Responses, Messages) is named after it."""
    kind = message.get("type")
    name = b"event: " + kind.encode() + b"\n" if isinstance(kind, str) and _NAME.fullmatch(kind) else b""
    return name + b"data: " + orjson.dumps(message) + b"\n\n"


class StreamWatch:
    """Reads a server-sent event stream as it passes, wherever it is split.

    With ``hide_usage`` the chunk that holds nothing but the usage is taken out: the client did not ask for it. With a
    ``rewriter`` events go on as it says. The fields ``id`` and ``retry`` are taken out: at the blank line after one,
    and after an ``id`` at any later one, openai-python reads an empty message and fails (its issue 3833). It fails at
    the message ``null``, too, which llama.cpp sends when it completes several prompts, so that is taken out. A comment
    without a word, llama.cpp's ping, gets one. All other bytes pass unchanged, by whole events.
    """

    def __init__(self, answer: Answer, *, hide_usage: bool, rewriter: Rewriter | None = None) -> None:
        self.answer = answer
        self._hide_usage = hide_usage
        self._rewriter = rewriter
        self._pending = b""
        self._skips = False
        self._pattern: EventPattern | None = None

    def feed(self, data: bytes) -> bytes:
        """Take in what came and return what goes on to the client now."""
        pattern = self._pattern
        if pattern is not None and not self._pending and (size := pattern.size_of(data)):
            self.answer.note_piece(size)
            return pattern.pass_on(data)
        return self._feed(self._pending + data)

    def _feed(self, pending: bytes) -> bytes:
        passed, start = [], 0
        blank_line = _BLANK_LINE if b"\r" in pending else _LF_LF
        for end in blank_line.finditer(pending, max(0, len(self._pending) - _OVERLAP)):
            event, start = pending[start : end.end()], end.end()
            passed.append(self._pass(event))
        self._pending = pending[start:]
        if len(self._pending) > MAX_EVENT_BYTES:
            self._skips = True
            # what stays may be the first part of the blank line that ends it
            passed.append(self._pending[:-_OVERLAP])
            self._pending = self._pending[-_OVERLAP:]
        return b"".join(passed)

    def close(self) -> bytes:
        """Read what the end of the stream left without a blank line; return what was held back and goes on."""
        rest, self._pending = self._pending, b""
        return self._pass(rest) + self._flush()

    def _pass(self, event: bytes) -> bytes:
        """Read an event; return what goes on to the client in its place."""
        skipped, self._skips = self._skips or len(event) > MAX_EVENT_BYTES, False
        if skipped:
            return event
        pattern = self._pattern
        if pattern is not None and (size := pattern.size_of(event)):
            self.answer.note_piece(size)
            return pattern.pass_on(event)
        came = event
        if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
            data = event[5:].strip()  # as nearly all engines send nearly all events: a line, and a blank one
        else:
            event = _cleaned(event)
            lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
            data = b"\n".join(lines)
        if data == b"[DONE]":
            self.answer.end()
            # After an error it would say that the answer is whole.
            return b"" if self.answer.error else self._flush() + event
        return self._read(came, event, data) if data else event

    def _read(self, came: bytes, event: bytes, data: bytes) -> bytes:
        try:
            message = orjson.loads(data)
        except orjson.JSONDecodeError:
            return event
        if not isinstance(message, dict):
            return b"" if message is None else event
        if self._rewriter is not None:
            message, original = self._rewriter.rewrite(message), message
            event = event if message is original else encode(message)
        self.answer.read(message)
        if self._hide_usage and message.get("usage") is not None and message.get("choices") == []:
            return b""
        self._learn(came, event, message)
        return event

    def _learn(self, came: bytes, went: bytes, message: dict[str, Any]) -> None:
        if self._rewriter is not None and not self._rewriter.is_steady:
            self._pattern = None
        elif not (self.answer.is_complete or self.answer.wants_text):
            self._pattern = EventPattern.of(came, went, message) or self._pattern

    def _flush(self) -> bytes:
        held = self._rewriter.flush() if self._rewriter is not None else None
        if held is None:
            return b""
        self.answer.read(held)
        return encode(held)


def _cleaned(event: bytes) -> bytes:
    """Return an event without ``id`` and ``retry``, and with a word in a comment that has none."""
    if not _UNWANTED.search(event):
        return event
    lines = [line for line in event.splitlines(keepends=True) if _field(line) not in _CONTROLS]
    cleaned = b"".join(_PING + line[len(line.rstrip(b"\r\n")) :] if line.rstrip() == b":" else line for line in lines)
    return cleaned if cleaned.strip() else b""


def _field(line: bytes) -> bytes:
    return line.rstrip(b"\r\n").partition(b":")[0]
