"""Prompt and answer as the semantic conventions have messages in spans; only where `log_prompts` has them logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MOST_MESSAGES = 100
MAX_TEXT = 8000
"""Characters of one text that are kept."""


@dataclass(frozen=True, slots=True)
class Content:
    """What was asked and answered, each a JSON list of messages."""

    input: str
    output: str


def content_of(line: Mapping[str, Any]) -> Content:
    """Return what a line of the log says was asked and answered; of pictures only that they were there."""
    prompt, response = line.get("prompt"), line.get("response")
    messages = prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]
    answer = _message("assistant", response) | {"finish_reason": line.get("finish_reason") or "unknown"}
    asked = [_input(message) for message in messages[-MOST_MESSAGES:]]
    return Content(_json(asked), _json([answer]) if response else "[]")


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _input(message: Any) -> dict[str, Any]:
    if isinstance(message, dict):
        return _message(str(message.get("role", "user")), message.get("content"))
    return _message("user", message)


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "parts": list(_parts(content))}


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            yield {"type": "text", "content": _plain(text[:MAX_TEXT])}
        elif part is not None:
            yield {"type": str(part.get("type", "unknown")) if isinstance(part, dict) else "unknown"}


def _plain(text: str) -> str:
    """Return the text without halves of characters, which protobuf does not take."""
    return text.encode("utf-8", "replace").decode()
