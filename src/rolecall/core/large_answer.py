"""A large whole answer, such as a batch of embeddings, of which the usage is read without parsing the rest.

Parsing costs some 5 ms a megabyte of numbers, during which every other request would wait.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_READ_BYTES = 4096
_KEY = b'"usage"'
_DECODER = json.JSONDecoder()


def usage_of(parts: Sequence[bytes]) -> Any:
    """Return what an answer, in parts as they came, says of its usage at its beginning or end; None if nothing.

    vLLM writes it behind the data, llama.cpp before. In a text the quotes of the key would be escaped.
    """
    end = _end_of(parts)
    begin = b""
    for part in parts:
        begin += part[: _READ_BYTES - len(begin)]
        if len(begin) == _READ_BYTES:
            break
    return next((usage for usage in map(_usage_in, (end, begin)) if usage is not None), None)


def is_object(parts: Sequence[bytes]) -> bool:
    """Whether an answer, in parts as they came, begins and ends as a JSON object does."""
    return _end_of(parts).rstrip().endswith(b"}") and b"".join(parts[:1]).lstrip().startswith(b"{")


def _end_of(parts: Sequence[bytes]) -> bytes:
    end = b""
    for part in reversed(parts):
        end = part[-(_READ_BYTES - len(end)) :] + end
        if len(end) == _READ_BYTES:
            break
    return end


def _usage_in(text: bytes) -> Any:
    at = text.rfind(_KEY)
    _, colon, value = text[at + len(_KEY) :].partition(b":")
    if at < 0 or not colon:
        return None
    try:
        return _DECODER.raw_decode(value.decode(errors="replace").lstrip())[0]
    except (ValueError, RecursionError):
        return None
