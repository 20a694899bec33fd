"""The answers of the fake engine, in the JSON shapes of llama.cpp's server."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from process.fake_engine_flags import Knobs

Token = tuple[str, str]  # field of the delta, text


def parts_of(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Content parts of all messages in order, plain text as a text part."""
    for message in body.get("messages") or [{"content": body.get("prompt") or ""}]:
        content = message.get("content") or ""
        yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


@dataclass(frozen=True)
class Answer:
    """One completion: its tokens and the JSON of its chunks, as llama-server shapes them."""

    name: str
    chat: bool
    body: dict[str, Any]
    knobs: Knobs
    completion_id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{os.urandom(12).hex()}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def prompt_tokens(self) -> int:
        """Bytes of text in the prompt."""
        return sum(len(part.get("text", "").encode("utf-8", "replace")) for part in parts_of(self.body))

    def words(self) -> list[str]:
        """The words of an unlimited answer, which joined are the text."""
        if self.knobs.nonsense:
            return ["!"] * self.knobs.tokens
        last = {"messages": self.body["messages"][-1:]} if self.chat else self.body
        prompt = "".join(part.get("text", "") for part in parts_of(last))
        if prompt.startswith("ECHO "):
            return re.findall(r"\s*\S+|\s+$", prompt[5:])
        mark = "é漢🙂" if self.knobs.unicode else ""
        return [f"{' ' if i else ''}w{i}{mark}" for i in range(self.knobs.tokens)]

    def tokens(self) -> tuple[list[Token], str]:
        """(field, text) of each token, and the finish_reason."""
        thoughts = ["Thinking", " hard", "..."] if self.knobs.reasoning and self.chat else []
        tokens = [("reasoning_content", text) for text in thoughts] + [("content", text) for text in self.words()]
        limit = self.body.get("max_tokens", self.body.get("max_completion_tokens"))
        cut = limit is not None and 0 <= limit < len(tokens)
        reason = self.knobs.finish_reason or ("length" if cut else "stop")
        return (tokens[:limit] if cut else tokens), reason

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """The usage object."""
        total = self.prompt_tokens + completion_tokens
        return {"completion_tokens": completion_tokens, "prompt_tokens": self.prompt_tokens, "total_tokens": total}

    def envelope(self, choices: list[dict[str, Any]], **more: object) -> dict[str, Any]:
        """What surrounds the choices in a chunk, and in a whole answer."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if self.body.get("stream") else "chat.completion"
        known = {"choices": choices, "created": self.created, "id": self.completion_id, "model": self.name}
        return known | {"system_fingerprint": "b0-fake", "object": kind} | more

    def choice(self, values: dict[str, Any], finish: str | None = None, key: str = "delta") -> dict[str, Any]:
        """The one choice; `values` are the fields of a delta or of a message."""
        if self.chat:
            return {"finish_reason": finish, "index": 0, key: values}
        return {"text": values.get("content", ""), "index": 0, "logprobs": None, "finish_reason": finish}

    def whole(self, tokens: list[Token], reason: str) -> dict[str, Any]:
        """The answer that is not streamed."""
        message = {"role": "assistant", "content": ""}
        for field, text in tokens:
            message[field] = message.get(field, "") + text
        return self.envelope([self.choice(message, reason, "message")], usage=self.usage(len(tokens)))

    def closing(self, count: int, reason: str) -> Iterator[dict[str, Any]]:
        """The chunks after the last token: finish_reason, and usage where the client asked for it."""
        if not self.chat:
            yield self.envelope([self.choice({}, reason)], usage=self.usage(count))
            return
        yield self.envelope([self.choice({}, reason)])
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield self.envelope([], usage=self.usage(count))


def vector(text: str) -> list[float]:
    """A deterministic embedding of 8 numbers."""
    data = text.encode().ljust(8, b"\0")
    return [sum(data[at::8]) % 256 / 256 for at in range(8)]
