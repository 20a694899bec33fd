"""System and developer messages as a model's template takes them.

Of 63 chat templates that come with llama.cpp (models/templates, build 11549), rendered with Jinja, 31 leave a message
of the role ``developer`` out without a word and 8 refuse it, where all but one take ``system``. A second system message
after the first is left out by 13 and refused by 6, one later in the conversation by 9 and 6. Newer engines mend a part:
vLLM (0.32, vllm/renderers/hf.py) puts system messages together, llama.cpp (common/chat.cpp) renames developers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rolecall.core.endpoints import CHAT, RESPONSES

_TAKE_ONE = frozenset({"llama_cpp"})
"""Backends that hand several system messages to the template as they are."""

_APART = "\n\n"
_TEXTS = ("text", "input_text")
_PLAIN = frozenset({"role", "content", "type"})


def fit_instructions(body: dict[str, Any], endpoint: str, *, knows_developer: bool, backend: str) -> None:
    """Change the system and developer messages of a body, in place, so that the model gets them.

    ``developer`` becomes ``system`` where the model does not know it. Where the engine needs that, those at the
    beginning become one message; of Responses, one with ``instructions``. Those later in the conversation stay where
    they are: their place is part of what they say. No list or message of the caller is changed.
    """
    where = {CHAT: "messages", RESPONSES: "input"}.get(endpoint, "")
    messages = body.get(where)
    if not isinstance(messages, list):
        return
    if not knows_developer and any(map(_is_developer, messages)):
        messages = [{**message, "role": "system"} if _is_developer(message) else message for message in messages]
        body[where] = messages
    if backend not in _TAKE_ONE:
        return
    count = _count_leading(messages)
    leading, rest = messages[:count], messages[count:]
    instructions = body.get("instructions")
    if endpoint == RESPONSES and count and (count > 1 or instructions):
        texts = [_text(message["content"]) for message in leading]
        if None not in texts and isinstance(instructions, str | None):
            body["instructions"] = _APART.join(filter(None, [instructions, *texts]))
            body[where] = rest
    elif endpoint == CHAT and count > 1:
        body[where] = [_merged(leading), *rest]


def _is_developer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "developer"


def _count_leading(messages: Sequence[Any]) -> int:
    """Return how many plain system messages stand at the beginning: of one with further fields nothing may be lost."""
    for index, message in enumerate(messages):
        is_plain = isinstance(message, dict) and message.get("role") == "system" and message.keys() <= _PLAIN
        if not is_plain or not isinstance(message.get("content"), str | list):
            return index
    return len(messages)


def _text(content: Any) -> str | None:
    """Return the text of a content, None if there is more than text in it."""
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content if _is_text(part)]
    return _APART.join(texts) if len(texts) == len(content) else None


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXTS and isinstance(part.get("text"), str)


def _merged(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    contents = [message["content"] for message in messages]
    if all(isinstance(content, str) for content in contents):
        return {"role": "system", "content": _APART.join(contents)}
    parts = ([{"type": "text", "text": each}] if isinstance(each, str) else each for each in contents)
    return {"role": "system", "content": [part for content in parts for part in content]}
