"""Which fields the requests for single pictures have, and those of them that are a task's variables."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from rolecall.errors import BadRequest
from rolecall.vision.single_input import Input, check_length
from rolecall.vision.task import Task

_PICTURE = frozenset({"file", "image"})
_PARAMETERS = frozenset({"options", "llm_params"})
"""Of JSON alone: a form has no objects."""
_OF_TASKS = frozenset({"task", "variables", "model"}) | _PICTURE | _PARAMETERS

FIELDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "/analyze_image": frozenset({"prompt", "model"}) | _PICTURE,
        "/ocr": frozenset({"language", "model"}) | _PICTURE,
        "/api/tag": _OF_TASKS,
        "/api/describe": _OF_TASKS | {"prompt", "language"},
        "/api/chat": frozenset({"model", "messages", "prompt", "message", "system", "images", "format", "stream"})
        | {"keep_alive", "think", "tools", "truncate", "shift", "logprobs", "top_logprobs"}  # of Ollama's clients
        | _PICTURE
        | _PARAMETERS,
        "/api/generate-embeddings": frozenset({"model", "input", "text", "texts", "prompt", "keep_alive", "truncate"})
        | _PARAMETERS,
    }
)
"""What each endpoint takes, or knows and need not heed; a task's variables come to it."""


def check_fields(given: Input, path: str, variables: Collection[str] = ()) -> None:
    """Raise ``BadRequest`` for a field that the endpoint does not have: whoever sent it meant something by it."""
    known = FIELDS[path].union(variables) - (_PARAMETERS if given.is_form else frozenset())
    sent = [*given.fields, *([] if given.file is None else ["file"])]
    strange = next((name for name in sent if name not in known), None)
    if strange is not None:
        name = strange[:100]
        raise BadRequest(f"There is no field {name!r} here; there are {', '.join(sorted(known))}.", param=name)


def variables_in(given: Input, task: Task) -> dict[str, str]:
    """Return a task's variables: fields of their names, and those of the object ``variables``, which go before.

    A value that is no text, as the result of a check may be, is written as JSON. Raises ``BadRequest``.
    """
    names = (name for name in (*task.variables, "language") if name not in _OF_TASKS and name != "prompt")
    fields = {name: given.text(name) for name in names if given.fields.get(name) not in (None, "")}
    return fields | _object(given)


def _object(given: Input) -> dict[str, str]:
    value = given.fields.get("variables")
    if given.is_form and isinstance(value, str):
        try:
            value = orjson.loads(value)
        except ValueError:
            raise BadRequest("The field 'variables' must be a JSON object.", param="variables") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest("The field 'variables' must be an object with a text for each.", param="variables")
    found = {str(name): _text(each) for name, each in value.items()}
    for name, text in found.items():
        check_length(text, f"variables.{name[:100]}")
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
