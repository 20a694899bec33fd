"""A server-sent event stream as it passes: read, and where somebody wants that, rewritten event by event."""

from __future__ import annotations

import re
from typing import Any, Protocol

import orjson

from rolecall.core.answer import Answer

__all__ = ["MAX_EVENT_BYTES", "Answer", "Rewriter", "StreamWatch", "encode"]

_BLANK_LINE = re.compile(rb"\n\r?\n|\r\r")
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

    @property
    def is_done(self) -> bool:
        """Whether the stream's last mark, such as ``[DONE]``, has passed."""
        return self.answer.is_over

    def feed(self, data: bytes) -> bytes:
        """Take in what came and return what goes on to the client now."""
        pending = self._pending + data
        passed, start = [], 0
        for end in _BLANK_LINE.finditer(pending, max(0, len(self._pending) - _OVERLAP)):
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
        event = _cleaned(event)
        lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if data == b"[DONE]":
            self.answer.end()
            # After an error it would say that the answer is whole.
            return b"" if self.answer.error else self._flush() + event
        return self._read(event, data) if data else event

    def _read(self, event: bytes, data: bytes) -> bytes:
        try:
            message = orjson.loads(data)
        except orjson.JSONDecodeError:
            return event
        if message is None:
            return b""
        if self._rewriter is not None and isinstance(message, dict):
            message, came = self._rewriter.rewrite(message), message
            event = event if message is came else encode(message)
        self.answer.read(message)
        only_usage = isinstance(message, dict) and message.get("usage") is not None and message.get("choices") == []
        return b"" if self._hide_usage and only_usage else event

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
