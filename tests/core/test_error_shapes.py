"""Errors in the form that each endpoint's clients know."""

from __future__ import annotations

import orjson
import pytest

from rolecall.core.endpoints import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES
from rolecall.core.error_shapes import error_body, error_event, event_message
from rolecall.errors import (
    BadRequest,
    BodyTooLarge,
    ContextLengthExceeded,
    ModelLoading,
    ModelNotFound,
    RolecallError,
    TooManyRequests,
    UpstreamError,
    UpstreamTimeout,
)


def test_openais_clients_get_openais_form() -> None:
    """Everywhere but at Anthropic's endpoints the body is the error's own."""
    error = BadRequest("no", param="n")
    assert error_body(CHAT, error) == error.body()
    assert error_event(CHAT, error) == b"data: " + orjson.dumps(error.body()) + b"\n\n"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("no"), "invalid_request_error"),
        (BodyTooLarge("no"), "request_too_large"),
        (ModelNotFound("no"), "not_found_error"),
        (TooManyRequests("no"), "rate_limit_error"),
        (ModelLoading("no"), "overloaded_error"),
        (UpstreamTimeout("no"), "timeout_error"),
        (UpstreamError("no"), "api_error"),
        (RolecallError("no"), "api_error"),
    ],
)
@pytest.mark.parametrize("endpoint", [MESSAGES, COUNT_TOKENS])
def test_anthropics_clients_get_anthropics_form(endpoint: str, error: RolecallError, kind: str) -> None:
    """The type is Anthropic's for the status; code and param stand beside it."""
    body = error_body(endpoint, error)
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "no", "param": error.param, "code": error.code},
    }
    assert error_event(endpoint, error) == b"event: error\ndata: " + orjson.dumps(body) + b"\n\n"


def test_anthropics_words_for_too_long_a_prompt() -> None:
    """Clients that shorten a conversation by themselves know it by these words and the numbers."""
    known = error_body(MESSAGES, ContextLengthExceeded(300, 200, "Shorten it."))["error"]["message"]
    assert known.startswith("prompt is too long: 300 tokens > 200 maximum. ")
    assert known.endswith("Shorten it.")
    unknown = error_body(MESSAGES, ContextLengthExceeded(None, None, "Shorten it."))["error"]["message"]
    assert unknown.startswith("prompt is too long. ")


def test_errors_within_responses() -> None:
    """The event is named and has its fields at the top, and ``error`` as well, for which OpenAI's client raises."""
    error = BadRequest("no", param="n")
    message = event_message(RESPONSES, error)
    assert message == {"type": "error", "code": error.code, "message": "no", "param": "n", **error.body()}
    assert error_event(RESPONSES, error).startswith(b"event: error\ndata: ")
    assert error_body(RESPONSES, error) == error.body()
