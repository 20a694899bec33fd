"""An error in the form that the clients of each endpoint know: OpenAI's, or Anthropic's for /v1/messages."""

from __future__ import annotations

from typing import Any

from rolecall.core.endpoints import MESSAGES, RESPONSES
from rolecall.core.sse import encode
from rolecall.errors import ContextLengthExceeded, RolecallError

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status, as Anthropic's API reference lists them; other 4xx are ``invalid_request_error``, 5xx ``api_error``."""


def error_body(endpoint: str, error: RolecallError) -> dict[str, Any]:
    """Return the body of an error answer.

    ``{"error": {"message", "type", "param", "code"}}``; for Anthropic's clients ``{"type": "error", "error": {"type",
    "message"}}`` with ``param`` and ``code`` beside them.
    """
    if not endpoint.startswith(MESSAGES):
        return error.body()
    fields = {"type": _anthropic_type(error.status), "message": _anthropic_words(error)}
    return {"type": "error", "error": {**fields, "param": error.param, "code": error.code}}


def event_message(endpoint: str, error: RolecallError) -> dict[str, Any]:
    """Return the message of an error within a stream.

    For Responses it is an ``error`` event with its fields at the top, and OpenAI's ``error`` as well: its Python client
    raises for that one only.
    """
    body = error_body(endpoint, error)
    if endpoint != RESPONSES:
        return body
    return {"type": "error", "code": error.code, "message": error.message, "param": error.param, **body}


def error_event(endpoint: str, error: RolecallError) -> bytes:
    """Return the event by which a stream ends with an error."""
    return encode(event_message(endpoint, error))


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def _anthropic_words(error: RolecallError) -> str:
    """Return the message; clients such as Claude Code know a prompt that is too long by Anthropic's own words."""
    if not isinstance(error, ContextLengthExceeded):
        return error.message
    numbers = (error.needed_tokens, error.context_tokens)
    said = "" if None in numbers else ": {} tokens > {} maximum".format(*numbers)
    return f"prompt is too long{said}. {error.message}"
