"""Prompt and answer as the semantic conventions have messages in spans; only where `log_prompts` has them logged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MOST_MESSAGES = 100
MAX_TEXT = 8000
"""Characters of one text that are kept."""

Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What was asked and answered, each a JSON list of messages."""

    input: str
    output: str


def content_of(line: Mapping[str, Any]) -> Content:
    """Return what a line of the log says was asked and answered; of pictures only that they were there."""
    prompt, response = line.get("prompt"), line.get("response")
    messages = prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]
    asked = [_input(message) for message in messages[-MOST_MESSAGES:]]
    return Content(_json(asked), _json([_message("assistant", _parts(response))]) if response else "[]")


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _input(message: Any) -> dict[str, Any]:
    """Return a message of a prompt, whichever endpoint it was for; what is none is a user's text."""
    match message:
        case {"type": "function_call"}:  # an item of /v1/responses, as the next one
            return _message("assistant", _parts(message))
        case {"type": "function_call_output"}:
            return _message("tool", _parts(message))
        case {"role": "tool"}:
            return _message("tool", [_result(message.get("tool_call_id"), message.get("content"))])
        case {"role": role}:
            return _message(str(role), _said(message))
        case {}:
            return _message("user", _said(message))
    return _message("user", _parts(message))


def _message(role: str, parts: Iterable[Part]) -> dict[str, Any]:
    return {"role": _plain(role), "parts": list(parts)}


def _said(message: Mapping[str, Any]) -> Iterator[Part]:
    """Yield what stands in a message, and the calls of tools beside it."""
    yield from _parts(message.get("content"))
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        match call:
            case {"function": {**function}}:
                yield _call(call.get("id"), function.get("name"), function.get("arguments"))


def _parts(content: Any) -> Iterator[Part]:
    for part in content if isinstance(content, list) else [content]:
        match part:
            case str(text) | {"text": str(text)}:
                yield {"type": "text", "content": _cut(text)}
            case {"type": "function_call"}:
                yield _call(part.get("call_id"), part.get("name"), part.get("arguments"))
            case {"type": "function_call_output"}:
                yield _result(part.get("call_id"), part.get("output"))
            case {"type": "tool_use"}:  # of /v1/messages
                yield _call(part.get("id"), part.get("name"), part.get("input"))
            case {"type": "tool_result"}:
                yield _result(part.get("tool_use_id"), part.get("content"))
            case {"type": kind}:
                yield {"type": _plain(str(kind))}
            case None:
                pass
            case _:
                yield {"type": "unknown"}


def _call(call_id: Any, name: Any, arguments: Any) -> Part:
    return {"type": "tool_call", "id": _text(call_id), "name": _text(name) or "", "arguments": _text(arguments)}


def _result(call_id: Any, content: Any) -> Part:
    texts = [part["content"] for part in _parts(content) if part["type"] == "text"]
    return {"type": "tool_call_response", "id": _text(call_id), "response": _cut("\n".join(texts))}


def _text(value: Any) -> str | None:
    """Return a value as text: that of a string, JSON of anything else."""
    return value if value is None else _cut(value if isinstance(value, str) else json.dumps(value, default=str))


def _cut(text: str) -> str:
    return _plain(text[:MAX_TEXT])


def _plain(text: str) -> str:
    """Return the text without halves of characters, which protobuf does not take."""
    return text.encode("utf-8", "replace").decode()
