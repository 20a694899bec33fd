"""What an answer says about itself: usage, finish reason, first token, errors; whole or chunk by chunk.

Four forms are read. Chat and completions: chunks and whole answers with ``choices``. OpenAI's Responses: events whose
``type`` begins with ``response.``, the last of which holds the whole response. Anthropic's Messages: events from
``message_start`` to ``message_stop``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rolecall.core.markers import REFUSAL, Opening

_BLOCK_KEYS = ("text", "thinking", "partial_json")
_RESPONSE_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_CACHED = frozenset({"cache_read_input_tokens", "cache_creation_input_tokens"})
"""Anthropic counts them beside ``input_tokens``, OpenAI within."""
_BYTES_PER_TOKEN = 4
"""English text has about four letters a token with the tokenizers of today's models."""


@dataclass(slots=True)
class Answer:
    """What is known of an answer so far.

    ``is_complete`` once a finish reason, its last mark or an error was seen, ``is_over`` once its last mark was, which
    nothing follows. Its text is kept only where ``keeps_text`` says so: prompts and answers stay out of memory and logs
    by default. ``opening`` takes its beginning where somebody wants to look at that.
    """

    keeps_text: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    has_output: bool = False
    is_complete: bool = False
    is_over: bool = False
    opening: Opening | None = None
    text: list[str] = field(default_factory=list)
    _pieces: int = field(default=0, compare=False)
    _bytes: int = field(default=0, compare=False)

    @property
    def seen(self) -> tuple[int, int]:
        """Return of how many pieces and bytes it was, as far as it was seen."""
        return self._pieces, self._bytes

    @property
    def wants_text(self) -> bool:
        """Whether anybody looks at the text that comes."""
        return self.keeps_text or (self.opening is not None and self.opening.left > 0)

    @property
    def tokens_seen(self) -> int:
        """Estimate the tokens that the model wrote by what was seen of them: a piece of a stream has at least one."""
        return max(self._pieces, -(-self._bytes // _BYTES_PER_TOKEN))

    @property
    def tokens_written(self) -> int:
        """Return the tokens that the model wrote: those that it told, or else an estimate.

        What is told before the end, as Messages do in their first event, is no more than a beginning.
        """
        if self.is_complete and self.completion_tokens is not None:
            return self.completion_tokens
        return max(self.completion_tokens or 0, self.tokens_seen)

    def read(self, message: Any) -> None:
        """Take in one JSON object of the answer: a chunk or an event of a stream, or a whole answer."""
        if not isinstance(message, dict):
            return
        if message.get("error"):
            self._fail(message["error"])
        self._read_usage(message.get("usage"))
        for choice in _objects(message.get("choices")):
            self._read_choice(choice)
        kind = message.get("type")
        if isinstance(kind, str):
            self._read_event(kind, message)
        elif message.get("object") == "response":
            self._read_response(message)

    def note_piece(self, size: int) -> None:
        """Take in a message that says what an earlier one said, but for a piece of text of so many bytes."""
        self._pieces += 1
        self._bytes += size

    def end(self) -> None:
        """Take in the last mark of a stream."""
        self.is_complete = self.is_over = True

    def _fail(self, error: Any) -> None:
        self.error = _error_text(error)
        self.is_complete = True

    def _finish(self, reason: Any) -> None:
        if reason:
            self.finish_reason = str(reason)
            self.is_complete = True
        if reason == REFUSAL:  # Messages; what was said before may be anything
            self._note_refusal()

    def _write(self, *pieces: Any) -> None:
        """Count what the model wrote in one go: texts, or objects with texts in them."""
        self.has_output = True
        self._pieces += 1
        for piece in pieces:
            if piece:
                self._bytes += _bytes_of(piece)

    def _say(self, text: Any, *, opens: bool = True) -> None:
        self.has_output = self.has_output or bool(text)
        if isinstance(text, str):
            if opens and self.opening is not None:
                self.opening.take(text)
            if self.keeps_text:
                self.text.append(text)

    def _refuse(self, text: Any, *, opens: bool = True) -> None:
        """Take in what is said in place of an answer."""
        self._say(text, opens=opens)
        if text and opens:
            self._note_refusal()

    def _note_refusal(self) -> None:
        if self.opening is not None:
            self.opening.refuses = True

    def _read_choice(self, choice: dict[str, Any]) -> None:
        self._finish(choice.get("finish_reason"))
        said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        if not isinstance(said, dict):
            return
        text, thought = said.get("content"), said.get("reasoning_content") or said.get("reasoning")
        calls, refusal = said.get("tool_calls"), said.get("refusal")
        if text or thought or calls or refusal or said.get("audio"):
            self._write(text, thought, calls, refusal)
            is_first = not choice.get("index")  # pieces of several choices come mixed in a stream
            self._say(text, opens=is_first)
            self._refuse(refusal, opens=is_first)

    def _read_event(self, kind: str, event: dict[str, Any]) -> None:
        if kind in _RESPONSE_ENDS:
            self._read_response(event.get("response"), is_told=True)
            self.end()
        elif kind.startswith("response."):
            self._read_response_delta(kind, event)
        elif kind == "message_start":
            started = event.get("message")
            self._read_usage(started.get("usage") if isinstance(started, dict) else None)
        elif kind == "content_block_delta":
            self._read_block(event.get("delta"))
        elif kind == "message_delta":
            delta = event.get("delta")
            self._finish(delta.get("stop_reason") if isinstance(delta, dict) else None)
        elif kind == "message_stop":
            self.end()
        elif kind == "message":
            self._finish(event.get("stop_reason"))
            for block in _objects(event.get("content")):
                self._read_block(block)
        elif kind == "error" and not event.get("error"):
            self._fail(event)

    def _read_block(self, block: Any) -> None:
        if isinstance(block, dict) and (block.get("type") == "tool_use" or any(block.get(key) for key in _BLOCK_KEYS)):
            self._write(*(block.get(key) for key in (*_BLOCK_KEYS, "input")))
            self._say(block.get("text"))

    def _read_response_delta(self, kind: str, event: dict[str, Any]) -> None:
        if not kind.endswith(".delta") or not event.get("delta"):
            return
        self._write(event["delta"])
        if kind == "response.output_text.delta":
            self._say(event["delta"])
        elif kind == "response.refusal.delta":
            self._refuse(event["delta"])

    def _read_response(self, response: Any, *, is_told: bool = False) -> None:
        """Read a whole response; ``is_told`` says that its text has come in parts before."""
        if not isinstance(response, dict):
            return
        if response.get("error"):
            self._fail(response["error"])
        self._read_usage(response.get("usage"))
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        self._finish(reason or response.get("status"))
        for part in () if is_told else _parts(response):
            self._write(part.get("text"), part.get("refusal"))
            self._say(part.get("text"))
            self._refuse(part.get("refusal"))

    def _read_usage(self, usage: Any) -> None:
        """Take in a usage; what an earlier one of the same answer has said stays where this one is silent."""
        if not isinstance(usage, dict):
            return
        prompt = _count(usage, "prompt_tokens", "input_tokens")
        if prompt is not None:
            self.prompt_tokens = prompt if _CACHED.isdisjoint(usage) else prompt + _cached(usage)
        written = _count(usage, "completion_tokens", "output_tokens")
        self.completion_tokens = self.completion_tokens if written is None else written
        details = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
        if isinstance(details, dict):
            self.reasoning_tokens = _count(details, "reasoning_tokens")


def _cached(usage: dict[str, Any]) -> int:
    return sum(_count(usage, name) or 0 for name in _CACHED)


def _bytes_of(value: Any) -> int:
    """Return the size of all texts in a value, encoded as UTF-8."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_bytes_of, inner))


def _objects(items: Any) -> Iterator[dict[str, Any]]:
    return (item for item in (items if isinstance(items, list) else ()) if isinstance(item, dict))


def _parts(response: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in _objects(response.get("output")):
        for part in _objects(item.get("content")):
            if part.get("type") == "output_text" or part.get("refusal"):
                yield part


def _count(usage: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int):
            return value
    return None


def _error_text(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
