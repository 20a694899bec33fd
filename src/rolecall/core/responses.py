"""OpenAI's Responses where llama.cpp has less of them: items and fields of requests, fields of a stream's events.

As of llama.cpp build 11434, measured: it tells past messages of the assistant only by their ``type``, which OpenAI lets
clients leave out; it wants text in a reasoning item; it ignores ``text.format``. The events of its streams have no
numbers (``sequence_number``, ``output_index``, ``content_index``), and the answer that they begin with has no
``output``: OpenAI's clients, which put streams together by these, fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_IN_PARTS = ("response.content_part.", "response.output_text.", "response.reasoning_text.", "response.refusal.")
"""Events that are about a part of an item; llama.cpp's items have one part."""
_BEGINNING = frozenset({"response.created", "response.in_progress"})
_TEXT = frozenset({"response.output_text.delta", "response.output_text.done"})


def fit_responses(adapted: dict[str, Any]) -> None:
    """Change the body of a request for Responses into one that llama.cpp understands, where it means the same."""
    items = adapted.get("input")
    if isinstance(items, list):
        adapted["input"] = [_with_type(item) for item in items if not _is_empty_thought(item)]
    wanted = _response_format(adapted.get("text"))
    if wanted is not None and adapted.get("response_format") is None:
        adapted["response_format"] = wanted


def _with_type(item: Any) -> Any:
    is_bare = isinstance(item, dict) and item.get("role") == "assistant" and "type" not in item
    return {**item, "type": "message"} if is_bare else item


def _is_empty_thought(item: Any) -> bool:
    """Whether it is a thought that only OpenAI could read: encrypted, or a summary."""
    return isinstance(item, dict) and item.get("type") == "reasoning" and not item.get("content")


def _response_format(text: Any) -> dict[str, Any] | None:
    """Return what ``text.format`` is called in a chat request; None for plain text."""
    wanted = text.get("format") if isinstance(text, Mapping) else None
    if not isinstance(wanted, Mapping):
        return None
    if wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {key: wanted[key] for key in wanted if key != "type"}}
    return {"type": "json_object"} if wanted.get("type") == "json_object" else None


class ResponsesEvents:
    """Gives the events of one stream the fields that they lack; what is there stays. A ``core.sse.Rewriter``'s part."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._events = 0
        self._items: dict[str, int] = {}

    def rewrite(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with all fields; the same object if it lacks none."""
        kind = message.get("type")
        if not isinstance(kind, str) or not kind.startswith("response."):
            return message
        lacking = {name: value for name, value in self._fields(kind, message).items() if message.get(name) is None}
        self._events += 1
        lacking |= self._completed(kind, message)
        return {**message, **lacking} if lacking else message

    def _fields(self, kind: str, message: Mapping[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {"sequence_number": self._events}
        id_ = _item_id(message)
        if id_ is not None:
            fields["output_index"] = self._items.setdefault(id_, len(self._items))
        if kind.startswith(_IN_PARTS):
            fields["content_index"] = 0
        if kind in _TEXT:
            fields["logprobs"] = []
        return fields

    def _completed(self, kind: str, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inner objects that lack something, whole."""
        answer, part = message.get("response"), message.get("part")
        if kind in _BEGINNING and isinstance(answer, dict) and answer.get("output") is None:
            return {"response": {"model": self._model, **answer, "output": []}}
        if isinstance(part, dict) and part.get("type") == "output_text" and part.get("annotations") is None:
            return {"part": {**part, "annotations": []}}
        return {}


def _item_id(message: Mapping[str, Any]) -> str | None:
    item = message.get("item")
    id_ = item.get("id") if isinstance(item, Mapping) else message.get("item_id")
    return id_ if isinstance(id_, str) else None
