"""What a request about a picture brings: base64 in any form, options, texts."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolecall.errors import BadRequest
from rolecall.vision.ask import AskError
from rolecall.vision.single_answer import as_error, shown_headers
from rolecall.vision.single_input import Input, decoded

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def param_of(work: Callable[[], object]) -> str | None:
    """Return the field that a refusal names; None where there was none."""
    try:
        work()
    except BadRequest as error:
        return error.param or "no field"
    return None


@given(
    st.binary(max_size=200),
    st.sampled_from(["", "data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;base64,", "data:;base64,"]),
    st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes]),
    st.booleans(),
)
def test_base64_in_any_form(data: bytes, scheme: str, encode: Any, padded: bool) -> None:  # noqa: FBT001 - drawn
    """Plain or as a data URL, with the alphabet of URLs, in lines, with or without its padding."""
    text = encode(data).decode()
    assert decoded(scheme + (text if padded else text.rstrip("=\n")), "image") == data


@given(any_json)
def test_what_is_no_picture_is_named(value: Any) -> None:
    """Anything else is refused with the field, and never fails otherwise."""
    assert param_of(lambda: decoded(value, "image")) in {None, "image"}


@given(st.dictionaries(st.sampled_from(["options", "llm_params", "prompt", "model"]), any_json, max_size=4))
def test_fields_of_any_kind(fields: dict[str, Any]) -> None:
    """Texts and options are what they should be, or refused with the field."""
    given_ = Input(fields)
    for name in ("prompt", "model"):
        assert param_of(partial(given_.text, name, "x")) in {None, name}
    assert param_of(given_.options) in {None, "options", "llm_params"}


def test_names_of_options() -> None:
    """llama.cpp's and Ollama's are those of a request; sizes are nobody's; `llm_params` goes last."""
    given_ = Input({"options": {"temp": 1, "num_predict": 5, "num_ctx": 7, "seed": 3}, "llm_params": {"temp": 0}})
    assert given_.options() == {"temperature": 0, "max_tokens": 5, "seed": 3}
    assert Input({"options": "{}"}, is_form=True).options() == {}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "unsupported_input", (400, "invalid_request_error", "model", "unsupported_input")),
        (400, "context_length_exceeded", (400, "invalid_request_error", "prompt", "context_length_exceeded")),
        (404, "model_not_found", (404, "invalid_request_error", "model", "model_not_found")),
        (422, "", (400, "invalid_request_error", None, "invalid_request")),
        (429, "queue_full", (429, "rate_limit_error", None, "queue_full")),
        (503, "model_loading", (503, "service_unavailable_error", None, "model_loading")),
        (504, "engine_timeout", (504, "upstream_error", None, "engine_timeout")),
        (0, "broken", (502, "upstream_error", None, "broken")),
    ],
)
def test_errors_of_questions(status: int, code: str, expected: tuple[Any, ...]) -> None:
    """They keep status and code, and name the field of the request that was sent here."""
    error = as_error(AskError("why", status=status, code=code, retry_after_s=3))
    found = error.body()["error"]
    assert (error.status, found["type"], found["param"], found["code"]) == expected
    assert error.headers()["retry-after"] == "3"


def test_headers_that_are_shown() -> None:
    """What was decided, and the id in the log; nothing else of the answer within."""
    headers = {"x-request-id": "r", "x-rolecall-model": "m", "content-length": "5", "set-cookie": "c"}
    assert shown_headers(headers) == {"x-request-id": "r", "x-rolecall-model": "m"}
