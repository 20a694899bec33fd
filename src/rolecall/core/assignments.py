"""``field=value`` as commands take it: which field of an entry is meant, and what its value is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError

from rolecall.core.json_text import as_text, is_text, no_text
from rolecall.core.models import ModelEntry
from rolecall.core.registry import unknown_field

_STEP = re.compile(r'"((?:[^"\\]|\\.)*)"|([^".=]+)')


@dataclass(frozen=True, slots=True)
class Assignment:
    """A value for a field of an entry; ``path`` is the way to it, ``removes`` takes the field away."""

    path: tuple[str, ...]
    value: Any = None
    removes: bool = False

    @property
    def field(self) -> str:
        """The field as it is written: with dots."""
        return ".".join(json.dumps(step, ensure_ascii=False) if set(step) & set('."=') else step for step in self.path)


def read_assignment(text: str) -> Assignment:
    """Return what ``field=value`` stands for; raises ``ValueError`` that names the field and what would do.

    Parts of a field are joined by dots, and one that holds a dot itself stands in double quotes. A value is JSON where
    the field takes that, else the text as it stands; ``NaN`` and infinities are refused where a number may stand. An
    empty value, or null, removes the field.
    """
    path, raw = _split(text)
    if (problem := unknown_field(path)) is not None:
        raise ValueError(problem)
    value = read_value(path, raw)
    if not is_text(text) or no_text(value) is not None:
        raise ValueError(f"{as_text(text)!r} holds what is no UTF-8 text, or half a character, which no answer could")
    return Assignment(path, value, removes=value is None)


def _split(text: str) -> tuple[tuple[str, ...], str]:
    path, position = [], 0
    while (found := _STEP.match(text, position)) is not None:
        path.append(found[2].strip() if found[1] is None else json.loads(f'"{found[1]}"', strict=False))
        position = found.end()
        if text[position : position + 1] == "=":
            return tuple(path), text[position + 1 :].strip()
        if text[position : position + 1] != ".":
            break
        position += 1
    raise ValueError(f"{text!r} is no field=value, such as context_length=8192 or backend_config.env.NAME=text")


def read_value(path: Sequence[str], raw: str) -> Any:
    """Return the value of a text for a field, None if it is to be removed."""
    if not raw:
        return None
    try:
        value = json.loads(raw, parse_constant=_no_number, parse_float=_finite)
    except _NoNumber as error:
        if not _fits(path, 1.5) and _fits(path, raw):  # a text, which may be any word
            return raw
        raise ValueError(f"{'.'.join(path)}: {error} is no number that JSON can hold") from None
    except (ValueError, RecursionError):
        return raw
    if isinstance(value, dict | list | str) or value is None or _fits(path, value) or not _fits(path, raw):
        return value
    return raw


class _NoNumber(ValueError):
    """What Python reads as a number and JSON has no word for."""


def _no_number(text: str) -> NoReturn:
    raise _NoNumber(text)


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_number(text)


def _fits(path: Sequence[str], value: Any) -> bool:
    """Whether an entry with this value alone is a valid one."""
    for step in reversed(path):
        value = {step: value}
    try:
        ModelEntry.model_validate({"name": "x", "backend": "x"} | value)
    except ValidationError:
        return False
    return True
