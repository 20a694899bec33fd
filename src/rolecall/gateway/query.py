"""What a request's query says, checked."""

from __future__ import annotations

from starlette.requests import Request

from rolecall.errors import BadRequest

_TRUE, _FALSE = ("1", "true", "yes", "on", ""), ("0", "false", "no", "off")
_MOST_DIGITS = 19


def read_flag(request: Request, name: str) -> bool:
    """Return what the query says; no such name is no. Raises ``BadRequest``."""
    value = request.query_params.get(name)
    if value is None or value.lower() in _FALSE:
        return False
    if value.lower() in _TRUE:
        return True
    raise BadRequest(f"The query's {name} must be 1 or 0, not {value!r}.", param=name)


def read_number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Return the whole number that the query says; no such name, or nothing in it, is ``default``.

    Raises ``BadRequest``.
    """
    text = request.query_params.get(name)
    if not text:
        return default
    if not is_number(text, least, most):
        raise BadRequest(f"The query's {name} must be a number from {least} to {most}, not {text[:50]!r}.", param=name)
    return int(text)


def is_number(text: str, least: int, most: int) -> bool:
    """Whether a text has these digits; one of thousands is not even read, which Python would refuse."""
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and least <= int(text) <= most
