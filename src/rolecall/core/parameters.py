"""What is changed in a request's body before an engine gets it, but for messages and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rolecall.core.models import SIZE_DEFAULTS, ModelEntry
from rolecall.core.transforms import GENERATING, RequestFacts

_REQUEST_NAMES = {"temp": "temperature"}
"""Generation defaults that go by the name of an engine's option, and what a request calls them."""


def adapt(body: Mapping[str, Any], facts: RequestFacts, entry: ModelEntry, served_id: str) -> dict[str, Any]:
    """Return the body for the engine: its model id, the entry's defaults and rules; all else as it came.

    Defaults fill only what the request leaves out or gives as null. ``request.strip`` and ``request.set`` come last, so
    that the registry has the last word.
    """
    adapted = {**body, "model": served_id}
    if facts.endpoint in GENERATING:
        for name, value in entry.generation_defaults.items():
            key = _REQUEST_NAMES.get(name, name)
            if value is not None and key not in SIZE_DEFAULTS and not _is_given(adapted, key):
                adapted[key] = value
        if facts.hides_usage:
            adapted["stream_options"] = {**(adapted.get("stream_options") or {}), "include_usage": True}
    for key in entry.request.strip:
        adapted.pop(key, None)
    adapted.update(entry.request.set)
    return adapted


def _is_given(body: Mapping[str, Any], key: str) -> bool:
    same = ("max_tokens", "max_completion_tokens")
    return any(body.get(name) is not None for name in (same if key in same else (key,)))
